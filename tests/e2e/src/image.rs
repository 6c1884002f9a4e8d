//! The node image under test, and changed copies of it.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use measurements::ReferenceValues;
use tempfile::TempDir;

/// Names the folder with the image; `make e2e` sets it.
const FOLDER: &str = "CONSTELLATION_E2E_IMAGE";
/// Size of a sector of the disk in bytes.
const SECTOR: u64 = 512;
/// Where the partition table starts (UEFI Specification 2.10, section 5.3.2: the header's usual value).
const TABLE: u64 = 2 * SECTOR;
/// Length of an entry, and where it has the first sector of its partition (section 5.3.3, table 5.6).
const ENTRY: u64 = 128;
const ENTRY_START: u64 = 32;
/// Where an erofs file system has its superblock, which is read whenever it is mounted.
const SUPERBLOCK: u64 = 1024;

/// An image and what its nodes must have measured.
pub struct Image {
    disk: PathBuf,
    uki: PathBuf,
    values: ReferenceValues,
    _folder: Option<TempDir>,
}

/// Partitions of the image, in their order.
enum Partition {
    System = 0,
    Root = 1,
}

impl Image {
    /// The image that was built.
    ///
    /// # Errors
    /// When there is none.
    pub fn built() -> Result<Self> {
        let folder = env::var_os(FOLDER).with_context(|| format!("{FOLDER} is not set: use `make e2e`"))?;
        let folder = fs::canonicalize(&folder).with_context(|| format!("no folder {folder:?}"))?;
        let values = fs::read(folder.join("reference-values.json")).context("no reference values")?;
        Ok(Self {
            disk: folder.join("node.img"),
            uki: folder.join("node.efi"),
            values: ReferenceValues::parse(&values)?,
            _folder: None,
        })
    }

    /// The disk image, `node.img`.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The sector of the disk, of 512 bytes, in which a text begins. Small files are not compressed.
    ///
    /// # Errors
    /// When the text is not there exactly once.
    pub fn sector_with(&self, text: &str) -> Result<u64> {
        let mut grep = Command::new("grep");
        grep.args(["--text", "--byte-offset", "--only-matching", "--fixed-strings", text])
            .arg(&self.disk)
            .env("LC_ALL", "C");
        let found = String::from_utf8(output(&mut grep)?)?;
        let [place] = found.lines().collect::<Vec<_>>()[..] else {
            bail!("{text:?} is there {} times", found.lines().count());
        };
        let (offset, _) = place.split_once(':').context("grep gives no offset")?;
        Ok(offset.parse::<u64>()? / SECTOR)
    }

    /// The computed reference values.
    #[must_use]
    pub fn values(&self) -> &ReferenceValues {
        &self.values
    }

    /// The kernel command line in it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn command_line(&self) -> Result<String> {
        let uki = fs::read(&self.uki)?;
        let (before, after) = uki.split_at(only_place(&uki, "roothash=")?);
        let is_text = |byte: &&u8| (b' '..=b'~').contains(*byte);
        let mut line: Vec<u8> = before.iter().rev().take_while(is_text).copied().collect();
        line.reverse();
        line.extend(after.iter().take_while(is_text));
        Ok(String::from_utf8(line)?)
    }

    /// Another image: the kernel command line has `new` in place of `old`. Its reference values are computed as for any image.
    ///
    /// # Errors
    /// When `old` is not there exactly once, or has another length.
    pub fn with_command_line(&self, old: &str, new: &str) -> Result<Self> {
        let mut changed = self.copy()?;
        changed.uki = changed.disk.with_file_name("node.efi");
        fs::copy(&self.uki, &changed.uki)?;
        for file in [&changed.uki, &changed.disk] {
            replace_once(file, fs::metadata(&self.uki)?.len(), old, new)
                .with_context(|| format!("changing {}", file.display()))?;
        }
        let values = xtask(["image".as_ref(), "measure".as_ref(), changed.uki.as_os_str()])?;
        changed.values = ReferenceValues::parse(&values)?;
        Ok(changed)
    }

    /// The same image with one bit of the root file system flipped.
    ///
    /// # Errors
    /// When the image has another form.
    pub fn with_a_flipped_bit_in_the_root(&self) -> Result<Self> {
        let changed = self.copy()?;
        let disk = File::options().read(true).write(true).open(&changed.disk)?;
        let position = partition(&disk, Partition::Root)? + SUPERBLOCK;
        let mut byte = [0];
        disk.read_exact_at(&mut byte, position)?;
        disk.write_all_at(&[byte[0] ^ 1], position)?;
        Ok(changed)
    }

    /// The same image with an add-on for the unified kernel image beside it (systemd-stub(7)).
    ///
    /// # Errors
    /// When the image builder's tools fail.
    pub fn with_add_on(&self, command_line: &str) -> Result<Self> {
        let tools = Tools::find()?;
        let folder = TempDir::with_prefix("e2e-add-on-")?;
        let add_on = folder.path().join("host.addon.efi");
        let stub = tools.0.join("usr/lib/systemd/boot/efi/addonx64.efi.stub");
        let mut ukify = tools.python("usr/bin/ukify");
        ukify
            .arg("build")
            .arg(format!("--cmdline={command_line}"))
            .arg(format!("--stub={}", stub.display()))
            .arg(format!("--output={}", add_on.display()));
        output(&mut ukify)?;
        self.with_files(
            "EFI/BOOT/BOOTX64.EFI.extra.d",
            &[("host.addon.efi", &fs::read(add_on)?)],
        )
    }

    /// The same image with a new folder on its EFI system partition, and these files in it.
    ///
    /// # Errors
    /// When the image builder's tools fail.
    pub fn with_files(&self, folder: &str, files: &[(&str, &[u8])]) -> Result<Self> {
        let changed = self.copy()?;
        let tools = Tools::find()?;
        let start = partition(&File::open(&changed.disk)?, Partition::System)?;
        let file_system = format!("{}@@{start}", changed.disk.display());
        for folder in missing_folders(folder) {
            output(
                tools
                    .command("usr/bin/mmd")
                    .args(["-i", &file_system, &format!("::{folder}")]),
            )?;
        }
        let content = TempDir::with_prefix("e2e-files-")?;
        for (name, bytes) in files {
            let file = content.path().join(name);
            fs::write(&file, bytes)?;
            let mut mcopy = tools.command("usr/bin/mcopy");
            mcopy.args(["-i", &file_system]).arg(&file).arg(format!("::{folder}"));
            output(&mut mcopy)?;
        }
        Ok(changed)
    }

    fn copy(&self) -> Result<Self> {
        let folder = TempDir::with_prefix("e2e-image-")?;
        let disk = folder.path().join("node.img");
        fs::copy(&self.disk, &disk).context("copying the image")?;
        Ok(Self {
            disk,
            uki: self.uki.clone(),
            values: self.values.clone(),
            _folder: Some(folder),
        })
    }
}

/// Which folders lead to this one, apart from those of the image.
fn missing_folders(folder: &str) -> impl Iterator<Item = &str> {
    let ends = folder.match_indices('/').map(|(end, _)| end).chain([folder.len()]);
    ends.map(|end| &folder[..end])
        .filter(|folder| !["EFI", "EFI/BOOT"].contains(folder))
}

/// Where a partition starts, in bytes.
fn partition(disk: &File, partition: Partition) -> Result<u64> {
    let mut sector = [0; 8];
    disk.read_exact_at(&mut sector, TABLE + partition as u64 * ENTRY + ENTRY_START)?;
    Ok(u64::from_le_bytes(sector) * SECTOR)
}

/// Replaces a text in the system partition, or in a file that is not longer than it.
fn replace_once(path: &Path, uki_len: u64, old: &str, new: &str) -> Result<()> {
    /// Everything in front of the unified kernel image on the disk is less than this.
    const IN_FRONT: u64 = 4 << 20;
    ensure!(old.len() == new.len(), "{old:?} and {new:?} differ in length");
    let file = File::options().read(true).write(true).open(path)?;
    let mut content = vec![0; (uki_len + IN_FRONT).min(file.metadata()?.len()).try_into()?];
    file.read_exact_at(&mut content, 0)?;
    Ok(file.write_all_at(new.as_bytes(), only_place(&content, old)? as u64)?)
}

fn only_place(content: &[u8], text: &str) -> Result<usize> {
    let windows = content.windows(text.len()).enumerate();
    let found: Vec<usize> = windows
        .filter_map(|(position, window)| (window == text.as_bytes()).then_some(position))
        .collect();
    match found[..] {
        [position] => Ok(position),
        _ => bail!("{text:?} is there {} times", found.len()),
    }
}

/// The programs that the image builder uses, from the packages of its lock.
pub(crate) struct Tools(PathBuf);

impl Tools {
    pub(crate) fn find() -> Result<Self> {
        let folder = String::from_utf8(xtask(["image", "unpacked", "tools"])?)?;
        Ok(Self(folder.trim_end().into()))
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.0.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(self.0.join("usr/lib/x86_64-linux-gnu"))
            .arg(self.0.join(program))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    fn python(&self, program: &str) -> Command {
        let mut command = self.command("usr/bin/python3");
        command
            .env("PYTHONHOME", self.0.join("usr"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(self.0.join(program));
        command
    }
}

/// Runs `cargo xtask` and gives what it prints.
fn xtask<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Vec<u8>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    cargo
        .arg("xtask")
        .args(arguments)
        .current_dir(root.context("no workspace")?);
    output(&mut cargo)
}

pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}
