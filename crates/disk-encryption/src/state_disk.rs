//! Formatting, opening and re-keying a state disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use cluster_types::DiskUuid;
use secret::StateDiskKey;

use crate::cryptsetup::{Cryptsetup, CryptsetupError};
use crate::header::layout::{CIPHER, SECTOR_SIZE};
use crate::header::{ExpectedDisk, HEADER_SIZE, Header, ReadHeaderError};
use crate::key::{DiskKey, EphemeralKey};

/// A disk, and the file in memory with its header for cryptsetup.
///
/// Every operation gives cryptsetup a header file that we wrote (`--header`), so changes that the host makes to the header on
/// the disk meanwhile have no effect.
#[derive(Debug)]
pub struct StateDisk<'a, C> {
    cryptsetup: &'a C,
    device: &'a Path,
    header_file: &'a Path,
}

/// A disk could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The header file could not be created.
    #[error("cannot create the header file")]
    HeaderFile(#[source] io::Error),
    /// cryptsetup could not be run, or could not format the disk.
    #[error("cannot format the disk")]
    Cryptsetup(#[from] CryptsetupError),
    /// cryptsetup made a header that does not have our shape.
    #[error("unusable new header")]
    Header(#[from] ReadHeaderError),
    /// The header did not reach the disk.
    #[error("cannot write the new header to the disk")]
    Write(#[source] io::Error),
}

/// A disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The header file could not be created.
    #[error("cannot create the header file")]
    HeaderFile(#[source] io::Error),
    /// cryptsetup failed; [`CryptsetupError::WrongKey`] when the key is not the disk's.
    #[error("cannot open the disk")]
    Cryptsetup(#[from] CryptsetupError),
}

/// A disk could not be re-keyed.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// The header file could not be created.
    #[error("cannot create the header file")]
    HeaderFile(#[source] io::Error),
    /// cryptsetup failed; [`CryptsetupError::WrongKey`] when the ephemeral key is not the disk's.
    #[error("cannot change the key")]
    Cryptsetup(#[from] CryptsetupError),
    /// cryptsetup made a header that does not have our shape.
    #[error("unusable new header")]
    Header(#[from] ReadHeaderError),
    /// The volume key in the new header is not the old one.
    #[error("the new header has a different volume key")]
    VolumeKeyChanged,
    /// The header did not reach the disk.
    #[error("cannot write the new header to the disk")]
    Write(#[source] io::Error),
    /// The disk is re-keyed, but the ephemeral key is still there.
    #[error("cannot delete the ephemeral key")]
    DeleteKey(#[source] io::Error),
}

/// Cost of the key derivation. Keys are 32 random or derived bytes, which no search finds, so a slow derivation protects
/// nothing and only costs time: with the predecessor's 64 MiB, every boot in an emulated VM takes 3 s longer. 4 passes are
/// libcryptsetup's minimum. Everything is set explicitly, because the defaults come from a benchmark of the machine, which
/// the host can influence, and because a header must be the same wherever it is made.
const PBKDF: [&str; 8] = [
    "--pbkdf",
    "argon2id",
    "--pbkdf-memory",
    "1024",
    "--pbkdf-parallel",
    "1",
    "--pbkdf-force-iterations",
    "4",
];

/// Reads exactly one key from standard input; newlines have no meaning in it.
const KEY_ON_STDIN: [&str; 4] = ["--key-file", "-", "--keyfile-size", "32"];

impl<'a, C: Cryptsetup> StateDisk<'a, C> {
    /// For the disk at `device`. `header_file` must be on a file system in memory.
    #[must_use]
    pub fn new(cryptsetup: &'a C, device: &'a Path, header_file: &'a Path) -> Self {
        Self {
            cryptsetup,
            device,
            header_file,
        }
    }

    /// Formats the disk under an ephemeral key, with the UUID the caller made:
    ///
    /// 1. cryptsetup makes the header in memory, and dm-integrity's superblock on the disk. Nothing is wiped: see
    ///    `integrity` for what that means.
    /// 2. The header is checked as if it came from a stranger, and marked as not initialised.
    /// 3. It is written to the disk, last of all. A power cut at any point leaves a disk that says it never joined, or one that
    ///    is as it was: see [`Header::write_to`].
    ///
    /// # Errors
    /// When one of these fails; the disk must then be formatted again.
    pub fn format(&self, disk: DiskUuid, key: &EphemeralKey) -> Result<Header, FormatError> {
        // cryptsetup wants to create this file itself, and would take an existing one for a device to overwrite.
        remove_file(self.header_file).map_err(FormatError::HeaderFile)?;
        self.run_format(disk, key)?;
        let header = self.read_header_file(disk)?.marked(false);
        self.write_header_file(&header).map_err(FormatError::HeaderFile)?;
        self.write_header_to_disk(&header).map_err(FormatError::Write)?;
        Ok(header)
    }

    /// Opens the disk as `/dev/mapper/<mapping>` with a header that was checked.
    ///
    /// # Errors
    /// When the key does not open the keyslot, or the kernel refuses the disk.
    pub fn open(&self, header: &Header, key: DiskKey<'_>, mapping: &str) -> Result<(), OpenError> {
        self.write_header_file(header).map_err(OpenError::HeaderFile)?;
        let (header_file, device) = (self.header_file.to_string_lossy(), self.device.to_string_lossy());
        let mut arguments = vec!["open", "--batch-mode", "--type", "luks2", "--header", &*header_file];
        arguments.extend(KEY_ON_STDIN);
        arguments.extend(["--key-slot", "0", "--disable-external-tokens"]);
        // Encrypts in the thread that makes the request instead of handing it to another one. Programs that wait for the disk,
        // such as etcd, gain most: in an emulated VM, mounting the new file system takes 0.1 s instead of 2 s.
        arguments.extend(["--perf-no_read_workqueue", "--perf-no_write_workqueue"]);
        arguments.extend([&*device, mapping]);
        Ok(self.cryptsetup.run(&arguments, key.expose())?)
    }

    /// Replaces the ephemeral key by the node's own, gives the disk the UUID that this key is for, and marks it as initialised:
    ///
    /// 1. cryptsetup changes keyslot 0 in the header in memory; the disk's header is not read.
    /// 2. The new header is checked: same disk, same volume key, one keyslot.
    /// 3. With UUID and mark, it is written to the disk; then the old keyslot is overwritten.
    ///
    /// The disk may be open meanwhile, because its volume key stays the same. A power cut inside step 3 leaves a disk that says it never
    /// joined, or one that has joined. The node must not have written anything yet that it cannot lose.
    ///
    /// # Security
    /// On success no header on the disk opens with the ephemeral key. A host that kept a copy of the old header gains
    /// nothing, since that key has never left this machine's memory; the caller deletes its file now.
    ///
    /// # Errors
    /// When one of these fails.
    pub fn rekey(
        &self,
        header: &Header,
        old: &EphemeralKey,
        disk: DiskUuid,
        new: &StateDiskKey,
    ) -> Result<Header, RekeyError> {
        self.write_header_file(header).map_err(RekeyError::HeaderFile)?;
        self.run_change_key(old, new)?;
        let rekeyed = self.read_header_file(header.metadata().disk())?;
        let rekeyed = rekeyed.of_disk(disk).marked(true);
        if !rekeyed.has_volume_key_of(header) {
            return Err(RekeyError::VolumeKeyChanged);
        }
        self.write_header_file(&rekeyed).map_err(RekeyError::HeaderFile)?;
        self.write_header_to_disk(&rekeyed).map_err(RekeyError::Write)?;
        self.overwrite_old_keyslot(header, &rekeyed)
            .map_err(RekeyError::Write)?;
        Ok(rekeyed)
    }

    fn run_format(&self, disk: DiskUuid, key: &EphemeralKey) -> Result<(), CryptsetupError> {
        let (header_file, device) = (self.header_file.to_string_lossy(), self.device.to_string_lossy());
        let (uuid, sector_size) = (disk.to_string(), SECTOR_SIZE.to_string());
        // In sectors of 512 bytes: where data start if the header is not detached.
        let offset = (HEADER_SIZE / 512).to_string();
        let mut arguments = vec!["luksFormat", "--batch-mode", "--type", "luks2"];
        arguments.extend(["--cipher", CIPHER, "--key-size", "512", "--hash", "sha256"]);
        arguments.extend([
            "--integrity",
            "hmac-sha256",
            "--integrity-no-wipe",
            "--sector-size",
            &*sector_size,
        ]);
        arguments.extend(PBKDF);
        arguments.extend(KEY_ON_STDIN);
        arguments.extend([
            "--uuid",
            &*uuid,
            "--offset",
            &*offset,
            "--header",
            &*header_file,
            &*device,
        ]);
        self.cryptsetup.run(&arguments, key.expose())
    }

    fn run_change_key(&self, old: &EphemeralKey, new: &StateDiskKey) -> Result<(), CryptsetupError> {
        let header_file = self.header_file.to_string_lossy();
        let mut arguments = vec!["luksChangeKey", "--batch-mode", "--key-slot", "0"];
        arguments.extend(PBKDF);
        arguments.extend(KEY_ON_STDIN);
        // The new key follows on the same pipe.
        arguments.extend(["--new-keyfile-size", "32", &*header_file, "-"]);
        let mut both = secret::zeroize::Zeroizing::new([0; EphemeralKey::LEN + StateDiskKey::LEN]);
        both[..EphemeralKey::LEN].copy_from_slice(old.expose());
        both[EphemeralKey::LEN..].copy_from_slice(new.expose());
        self.cryptsetup.run(&arguments, both.as_slice())
    }

    fn read_header_file(&self, disk: DiskUuid) -> Result<Header, ReadHeaderError> {
        let mut file = File::open(self.header_file).map_err(ReadHeaderError::Read)?;
        Header::read_from(&mut file, ExpectedDisk::Is(disk))
    }

    /// Creates the header file again, so that nothing of an earlier one is left in it.
    fn write_header_file(&self, header: &Header) -> io::Result<()> {
        remove_file(self.header_file)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.header_file)?;
        file.set_len(HEADER_SIZE)?;
        header.write_to(&mut file, |_| Ok(()))
    }

    fn write_header_to_disk(&self, header: &Header) -> io::Result<()> {
        let mut device = OpenOptions::new().write(true).open(self.device)?;
        header.write_to(&mut device, |device| {
            device.flush()?;
            device.sync_data()
        })
    }

    /// Writes zeros over the part of the old keyslot that the new one does not cover.
    fn overwrite_old_keyslot(&self, old: &Header, new: &Header) -> io::Result<()> {
        let (old, new) = (old.keyslot_area(), new.keyslot_area());
        let left = if new.start <= old.start {
            old.start.max(new.end)..old.end
        } else {
            old.start..old.end.min(new.start)
        };
        if left.is_empty() {
            return Ok(());
        }
        let device = OpenOptions::new().write(true).open(self.device)?;
        let zeros = vec![0; usize::try_from(left.end - left.start).expect("a keyslot is small")];
        device.write_all_at(&zeros, left.start)?;
        device.sync_data()
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use super::*;
    use crate::header::tests::header;

    /// Records what it is asked to do, and leaves a given header behind, as the program would.
    #[derive(Default)]
    struct Recorder {
        calls: RefCell<Vec<(Vec<String>, Vec<u8>)>>,
        leaves: Option<Header>,
    }

    impl Cryptsetup for Recorder {
        fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(), CryptsetupError> {
            let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            self.calls.borrow_mut().push((arguments, input.to_vec()));
            if let Some(header) = &self.leaves {
                let mut file = File::create(header_file(arguments_folder(&self.calls.borrow()[0].0))).unwrap();
                file.set_len(HEADER_SIZE).unwrap();
                header.write_to(&mut file, |_| Ok(())).unwrap();
            }
            Ok(())
        }
    }

    /// The folder in which a test keeps disk and header, found in what cryptsetup was told.
    fn arguments_folder(arguments: &[String]) -> &Path {
        let path = arguments.iter().find(|argument| argument.ends_with("/header")).unwrap();
        Path::new(path).parent().unwrap()
    }

    fn header_file(folder: &Path) -> std::path::PathBuf {
        folder.join("header")
    }

    /// A folder with a disk of 32 MiB.
    fn folder_with_disk() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk"))
            .unwrap()
            .set_len(32 << 20)
            .unwrap();
        folder
    }

    fn ephemeral() -> EphemeralKey {
        EphemeralKey::from_bytes(*b"CANARY-ephemeral-key-0123456789a")
    }

    /// Another one than the disk was formatted with.
    fn ticket_disk() -> DiskUuid {
        "3f2504e0-4f89-11d3-9a0c-0305e82c33ff".parse().unwrap()
    }

    fn state_key() -> StateDiskKey {
        StateDiskKey::from_bytes(*b"CANARY-state-disk-key-0123456789")
    }

    fn on_disk(folder: &Path) -> Result<Header, ReadHeaderError> {
        Header::read_from(&mut File::open(folder.join("disk")).unwrap(), ExpectedDisk::FirstSeen)
    }

    /// Runs all three operations and returns what cryptsetup was told.
    fn calls() -> Vec<(Vec<String>, Vec<u8>)> {
        let (folder, recorder) = (
            folder_with_disk(),
            Recorder {
                leaves: Some(header()),
                ..Recorder::default()
            },
        );
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let disk = StateDisk::new(&recorder, &device, &file);
        let formatted = disk.format(header().metadata().disk(), &ephemeral()).unwrap();
        disk.open(&formatted, DiskKey::Ephemeral(&ephemeral()), "state")
            .unwrap();
        disk.rekey(&formatted, &ephemeral(), ticket_disk(), &state_key())
            .unwrap();
        recorder.calls.into_inner()
    }

    #[test]
    fn keys_are_never_arguments() {
        let calls = calls();
        assert_eq!(calls.len(), 3);
        for (arguments, _) in calls {
            assert!(
                !arguments.iter().any(|argument| argument.contains("CANARY")),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn keys_go_through_standard_input() {
        let inputs: Vec<_> = calls().into_iter().map(|(_, input)| input).collect();
        let both = [*ephemeral().expose(), *state_key().expose()].concat();
        assert_eq!(
            inputs,
            [ephemeral().expose().to_vec(), ephemeral().expose().to_vec(), both]
        );
    }

    #[test]
    fn every_command_uses_the_header_in_memory() {
        for (arguments, _) in calls() {
            assert!(
                arguments.iter().any(|argument| argument.ends_with("/header")),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn formatted_disk_is_not_marked_and_rekeyed_disk_is() {
        let (folder, recorder) = (
            folder_with_disk(),
            Recorder {
                leaves: Some(header()),
                ..Recorder::default()
            },
        );
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let disk = StateDisk::new(&recorder, &device, &file);
        let formatted = disk.format(header().metadata().disk(), &ephemeral()).unwrap();
        assert_eq!(on_disk(folder.path()).unwrap(), formatted);
        assert!(!formatted.metadata().is_initialised());
        let rekeyed = disk
            .rekey(&formatted, &ephemeral(), ticket_disk(), &state_key())
            .unwrap();
        assert_eq!(on_disk(folder.path()).unwrap(), rekeyed);
        assert!(rekeyed.metadata().is_initialised());
        assert_eq!(rekeyed.metadata().disk(), ticket_disk());
    }

    #[test]
    fn format_fails_when_cryptsetup_leaves_no_header() {
        let (folder, recorder) = (folder_with_disk(), Recorder::default());
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let refusal = StateDisk::new(&recorder, &device, &file).format(header().metadata().disk(), &ephemeral());
        assert!(
            matches!(refusal, Err(FormatError::Header(ReadHeaderError::Read(_)))),
            "{refusal:?}"
        );
        assert!(on_disk(folder.path()).is_err(), "something reached the disk");
    }

    #[test]
    fn rekey_rejects_header_of_another_disk() {
        let (folder, recorder) = (
            folder_with_disk(),
            Recorder {
                leaves: Some(header()),
                ..Recorder::default()
            },
        );
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let other = header().of_disk("00000000-4f89-11d3-9a0c-0305e82c3301".parse().unwrap());
        let refusal =
            StateDisk::new(&recorder, &device, &file).rekey(&other, &ephemeral(), ticket_disk(), &state_key());
        assert!(
            matches!(refusal, Err(RekeyError::Header(ReadHeaderError::Refused(_)))),
            "{refusal:?}"
        );
    }

    #[test]
    fn rekey_rejects_another_volume_key() {
        let (folder, recorder) = (
            folder_with_disk(),
            Recorder {
                leaves: Some(header()),
                ..Recorder::default()
            },
        );
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let other = header().with_other_volume_key();
        let refusal =
            StateDisk::new(&recorder, &device, &file).rekey(&other, &ephemeral(), ticket_disk(), &state_key());
        assert!(matches!(refusal, Err(RekeyError::VolumeKeyChanged)), "{refusal:?}");
        assert!(on_disk(folder.path()).is_err(), "something reached the disk");
    }

    #[test]
    fn rekey_overwrites_the_old_keyslot() {
        let (folder, old) = (folder_with_disk(), header());
        let recorder = Recorder {
            leaves: Some(header().with_keyslot_at(old.keyslot_area().end)),
            ..Recorder::default()
        };
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        old.write_to(&mut OpenOptions::new().write(true).open(&device).unwrap(), |_| Ok(()))
            .unwrap();
        StateDisk::new(&recorder, &device, &file)
            .rekey(&old, &ephemeral(), ticket_disk(), &state_key())
            .unwrap();
        let bytes = fs::read(&device).unwrap();
        let range = old.keyslot_area();
        assert!(
            bytes[range.start as usize..range.end as usize]
                .iter()
                .all(|byte| *byte == 0)
        );
        assert!(bytes[range.end as usize] != 0);
    }

    #[test]
    fn header_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, recorder) = (folder_with_disk(), Recorder::default());
        let (device, file) = (folder.path().join("disk"), header_file(folder.path()));
        let disk = StateDisk::new(&recorder, &device, &file);
        disk.open(&header(), DiskKey::State(&state_key()), "state").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
