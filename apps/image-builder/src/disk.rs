//! The root file system with its hash tree, and the disk image.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, ensure};
use digest::Digest;
use uuid::Uuid;

use crate::tools::{Tools, run};

const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// Partitions start at multiples of this many bytes.
const ALIGNMENT: u64 = 1 << 20;

/// Partition types. The first is from the UEFI Specification, the others from the Discoverable Partitions Specification.
const ESP: Uuid = uuid::uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
const ROOT: Uuid = uuid::uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
const ROOT_VERITY: Uuid = uuid::uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");

/// Fixed, so that two builds give the same bytes. All a salt does is make precomputed trees of well-known data useless.
const SALT_LABEL: &[u8] = b"constellation root file system v1";

/// A file system image and the tree that verifies it.
pub(crate) struct Root {
    folder: PathBuf,
    hash: Digest,
}

impl Root {
    /// Makes an erofs file system from a folder, and its hash tree.
    pub(crate) fn build(tree: &Path, tools: &Tools, into: &Path) -> Result<()> {
        let image = into.join("root.erofs");
        let mut mkfs = tools.command("usr/bin/mkfs.erofs");
        mkfs.args([
            "-T0",
            "--all-time",
            "--all-root",
            "-x-1",
            "-zlz4hc,9",
            "-C65536",
            "--quiet",
        ])
        .arg(format!("-U{}", uuid_from(b"root file system")))
        .arg(&image)
        .arg(tree);
        run(&mut mkfs)?;
        ensure!(
            fs::metadata(&image)?.len() % BLOCK == 0,
            "the root file system is not a whole number of blocks"
        );

        let tree = into.join("root.verity");
        File::create(&tree)?;
        let mut format = tools.command("usr/sbin/veritysetup");
        format
            .args(["format", "--no-superblock", "--format=1", "--hash=sha256"])
            .args(["--data-block-size=4096", "--hash-block-size=4096"])
            .arg(format!("--salt={}", salt()))
            .arg(format!("--root-hash-file={}", into.join("root.hash").display()))
            .arg(&image)
            .arg(&tree);
        run(&mut format).map(drop)
    }

    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        let hash = fs::read_to_string(folder.join("root.hash"))?;
        let hash = hash.trim().parse().context("veritysetup did not print a root hash")?;
        Ok(Self { folder, hash })
    }

    pub(crate) fn hash(&self) -> Digest {
        self.hash
    }

    /// The options of the measured command line with which node-init opens the file system.
    pub(crate) fn options(&self) -> Result<[String; 3]> {
        let blocks = fs::metadata(self.image())?.len() / BLOCK;
        Ok([
            format!("roothash={}", self.hash),
            format!("constellation.root-salt={}", salt()),
            format!("constellation.root-blocks={blocks}"),
        ])
    }

    fn image(&self) -> PathBuf {
        self.folder.join("root.erofs")
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("root.verity")
    }
}

fn salt() -> Digest {
    Digest::of(SALT_LABEL)
}

/// A UUID that is the same in every build.
fn uuid_from(name: &[u8]) -> Uuid {
    let digest = Digest::of(name);
    let (first, _) = digest
        .as_bytes()
        .split_first_chunk()
        .expect("32 bytes are more than 16");
    uuid::Builder::from_custom_bytes(*first).into_uuid()
}

/// Writes the disk image: EFI system partition, root file system, hash tree.
pub(crate) fn build(root: &Root, uki: &Path, tools: &Tools, work: &Path, output: &Path) -> Result<()> {
    let esp = work.join("esp.img");
    build_esp(uki, tools, &esp)?;
    let [root_uuid, tree_uuid] = root
        .hash
        .as_bytes()
        .as_chunks::<16>()
        .0
        .try_into()
        .expect("32 bytes are two times 16");
    let mut layout = Layout::new(root.hash);
    layout.add(&esp, ESP, uuid_from(root.hash.to_string().as_bytes()))?;
    layout.add(&root.image(), ROOT, Uuid::from_bytes(root_uuid))?;
    layout.add(&root.tree(), ROOT_VERITY, Uuid::from_bytes(tree_uuid))?;
    layout.write(tools, output)
}

/// A FAT file system with the unified kernel image in the place where every firmware looks for it.
fn build_esp(uki: &Path, tools: &Tools, esp: &Path) -> Result<()> {
    // FAT32 has at least 65525 clusters; with one sector per cluster that is 33 MiB.
    let size = (fs::metadata(uki)?.len() + (4 << 20))
        .next_multiple_of(ALIGNMENT)
        .max(40 << 20);
    File::create(esp)?.set_len(size)?;
    let mut mkfs = tools.command("usr/sbin/mkfs.fat");
    mkfs.args(["--invariant", "-F", "32", "-s", "1", "-i", "c0de0001", "-n", "ESP"])
        .arg(esp);
    run(&mut mkfs)?;
    run(tools
        .command("usr/bin/mmd")
        .arg("-i")
        .arg(esp)
        .args(["::EFI", "::EFI/BOOT"]))?;
    run(tools
        .command("usr/bin/mcopy")
        .arg("-i")
        .arg(esp)
        .arg(uki)
        .arg("::EFI/BOOT/BOOTX64.EFI"))
    .map(drop)
}

/// A partition table that is being built.
struct Layout {
    script: String,
    contents: Vec<(PathBuf, u64)>,
    end: u64,
}

impl Layout {
    fn new(root_hash: Digest) -> Self {
        let id = uuid_from(format!("disk {root_hash}").as_bytes());
        Self {
            script: format!("label: gpt\nlabel-id: {id}\nunit: sectors\nfirst-lba: 2048\n"),
            contents: Vec::new(),
            end: ALIGNMENT,
        }
    }

    /// Adds a partition. Its UUID is also its name, because node-init finds it by that.
    fn add(&mut self, content: &Path, kind: Uuid, id: Uuid) -> Result<()> {
        let len = fs::metadata(content)?.len();
        let (start, size) = (self.end / SECTOR, len.div_ceil(SECTOR));
        self.script += &format!("start={start}, size={size}, type={kind}, uuid={id}, name=\"{id}\"\n");
        self.contents.push((content.to_owned(), self.end));
        self.end = (self.end + len).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    fn write(&self, tools: &Tools, output: &Path) -> Result<()> {
        // The second copy of the table follows the last partition.
        File::create(output)?.set_len(self.end + ALIGNMENT)?;
        let mut sfdisk = tools.command("usr/sbin/sfdisk");
        sfdisk
            .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"])
            .arg(output);
        let mut sfdisk = sfdisk.stdin(Stdio::piped()).spawn().context("cannot start sfdisk")?;
        let mut input = sfdisk.stdin.take().ok_or_else(|| anyhow!("sfdisk has no input"))?;
        input.write_all(self.script.as_bytes())?;
        drop(input);
        ensure!(sfdisk.wait()?.success(), "sfdisk failed");
        self.contents.iter().try_for_each(|(content, offset)| {
            copy_into(content, output, *offset).with_context(|| format!("cannot copy {}", content.display()))
        })
    }
}

/// Copies a file into another one at an offset. Blocks of zeroes become holes.
fn copy_into(from: &Path, to: &Path, offset: u64) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = OpenOptions::new().write(true).open(to)?;
    to.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            len if buffer[..len].iter().all(|&byte| byte == 0) => {
                to.seek_relative(len as i64)?;
            }
            len => to.write_all(&buffer[..len])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_copied_as_holes_of_the_same_length() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let mut content = vec![0; 1 << 17];
        content.extend_from_slice(b"end");
        fs::write(&from, &content).unwrap();
        File::create(&to).unwrap().set_len(1 << 18).unwrap();
        copy_into(&from, &to, 100).unwrap();
        let copied = fs::read(&to).unwrap();
        assert_eq!(copied[100..100 + content.len()], content);
        assert_eq!(copied.len(), 1 << 18);
    }

    #[test]
    fn uuids_do_not_change_between_builds() {
        assert_eq!(uuid_from(b"a"), uuid_from(b"a"));
        assert_ne!(uuid_from(b"a"), uuid_from(b"b"));
    }
}
