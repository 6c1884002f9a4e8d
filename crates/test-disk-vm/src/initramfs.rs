//! An initramfs of Debian's programs and ours.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Debian's programs the guest runs.
const DEBIAN_PROGRAMS: [&str; 2] = ["usr/sbin/cryptsetup", "usr/sbin/mkfs.ext4"];
/// Chooses the features of the file system.
const MKFS_SETTINGS: &str = "etc/mke2fs.conf";
/// Ours, and where they go.
const OUR_PROGRAMS: [(&str, &str); 2] = [("disk-vm-guest", "init"), ("disk-mapper", "usr/bin/disk-mapper")];
/// Kernel modules, without those they need. Nothing in the initramfs loads modules on demand.
const MODULES: [&str; 7] = [
    "virtio_blk",
    "dm-crypt",
    "dm-integrity",
    "authenc",
    "xts",
    "aesni-intel",
    "sha256-ssse3",
];
/// Where programs look for shared libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The kernel among the unpacked packages.
pub(crate) fn kernel(root: &Path) -> Result<PathBuf> {
    let boot = root.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("{} cannot be read", boot.display()))?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.path());
    names
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .max()
        .with_context(|| format!("no kernel in {}", boot.display()))
}

/// Writes the initramfs.
pub(crate) fn build(root: &Path, kernel_root: &Path, programs: &Path, target: &Path) -> Result<()> {
    let file = File::create(target).with_context(|| format!("{} cannot be made", target.display()))?;
    let mut archive = Cpio {
        out: BufWriter::new(file),
    };
    for folder in [
        "dev", "proc", "sys", "run", "tmp", "modules", "etc", "usr", "usr/bin", "usr/sbin", "usr/lib", LIBRARIES,
    ] {
        archive.folder(folder)?;
    }
    for (link, to) in [
        ("lib", "usr/lib"),
        ("lib64", LIBRARIES),
        ("sbin", "usr/sbin"),
        ("bin", "usr/bin"),
    ] {
        archive.link(link, to)?;
    }
    for (name, path) in OUR_PROGRAMS {
        archive.program(path, &read(&programs.join(name))?)?;
    }
    for path in DEBIAN_PROGRAMS {
        archive.program(path, &read(&root.join(path))?)?;
    }
    add_libraries(&mut archive, root)?;
    add_modules(&mut archive, kernel_root)?;
    archive.file(MKFS_SETTINGS, &read(&root.join(MKFS_SETTINGS))?)?;
    archive.end()
}

/// All libraries of the packages: finding out which are needed would be longer than this.
fn add_libraries(archive: &mut Cpio, root: &Path) -> Result<()> {
    for (name, path) in sorted(&root.join(LIBRARIES))? {
        if name.contains(".so") && path.is_file() {
            archive.program(&format!("{LIBRARIES}/{name}"), &read(&path)?)?;
        }
    }
    Ok(())
}

/// Adds the modules, each after those it needs, numbered in the order in which they are to be loaded.
fn add_modules(archive: &mut Cpio, root: &Path) -> Result<()> {
    let mut available = BTreeMap::new();
    find_modules(&root.join("usr/lib/modules"), &mut available)?;
    let mut loaded = Vec::new();
    for module in MODULES {
        add_module(archive, &available, &module.replace('-', "_"), &mut loaded)?;
    }
    Ok(())
}

fn add_module(
    archive: &mut Cpio,
    available: &BTreeMap<String, PathBuf>,
    name: &str,
    loaded: &mut Vec<String>,
) -> Result<()> {
    if loaded.iter().any(|other| other == name) {
        return Ok(());
    }
    let path = available
        .get(name)
        .with_context(|| format!("no kernel module {name}"))?;
    let bytes = decompressed(path)?;
    for needed in needs(&bytes) {
        add_module(archive, available, &needed, loaded)?;
    }
    archive.file(&format!("modules/{:02}-{name}.ko", loaded.len()), &bytes)?;
    loaded.push(name.to_owned());
    Ok(())
}

/// Modules below a folder, by their names as the kernel writes them.
fn find_modules(folder: &Path, available: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for (name, path) in sorted(folder)? {
        if path.is_dir() {
            find_modules(&path, available)?;
        } else if let Some(module) = name.strip_suffix(".ko.xz") {
            available.insert(module.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// What a module says it needs, in its `.modinfo` section. The packages have no `modules.dep`; it is made at installation.
fn needs(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let position = module.windows(FIELD.len()).position(|window| window == FIELD);
    let text = position.map_or(&[][..], |position| &module[position + FIELD.len()..]);
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(text);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(module)
        .output()
        .context("no xz")?;
    if !output.status.success() {
        bail!("xz cannot decompress {}", module.display());
    }
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn sorted(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    names.sort();
    Ok(names)
}

/// An archive in the format of the kernel's documentation, "initramfs buffer format".
struct Cpio {
    out: BufWriter<File>,
}

impl Cpio {
    fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, 0o040_755, &[])
    }

    fn program(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.entry(path, 0o100_755, bytes)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.entry(path, 0o100_644, bytes)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.entry(path, 0o120_777, to.as_bytes())
    }

    fn end(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush().context("initramfs cannot be written")
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(path.len() + 1).with_context(|| format!("{path} is too long"))?;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut entry = b"070701".to_vec();
        entry.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        entry.extend(path.as_bytes());
        entry.push(0);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend(bytes);
        entry.resize(entry.len().next_multiple_of(4), 0);
        self.out.write_all(&entry).context("initramfs cannot be written")
    }
}
