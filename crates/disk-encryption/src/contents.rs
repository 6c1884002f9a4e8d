use std::io::{self, Read, Seek};

use cluster_types::DiskUuid;

use crate::device::is_blank;
use crate::header::{ExpectedDisk, Header, HeaderError, ReadHeaderError, is_unfinished};

/// The contents of a disk.
#[derive(Debug)]
pub enum Contents {
    /// Zeros in all the places where contents would be recognised.
    Blank,
    /// Part of a header that was being written when the power failed: [`Header::write_to`].
    Unfinished,
    /// A header of exactly our shape.
    Ours {
        /// Which disk it says it is.
        disk: DiskUuid,
        /// Whether it says that its node has joined.
        initialised: bool,
    },
    /// None of these.
    Other(HeaderError),
}

impl Contents {
    /// Copies what distinguishes disks to memory, and classifies it.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn look_at(device: &mut (impl Read + Seek)) -> io::Result<Self> {
        if is_unfinished(device)? {
            return Ok(Self::Unfinished);
        }
        if is_blank(device)? {
            return Ok(Self::Blank);
        }
        match Header::read_from(device, ExpectedDisk::FirstSeen) {
            Ok(header) => Ok(Self::Ours {
                disk: header.metadata().disk(),
                initialised: header.metadata().is_initialised(),
            }),
            Err(ReadHeaderError::Refused(reason)) => Ok(Self::Other(reason)),
            Err(ReadHeaderError::Read(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::header::tests::header;

    fn look_at_disk_with(bytes: &[u8]) -> Contents {
        let mut disk = vec![0; 32 << 20];
        disk[..bytes.len()].copy_from_slice(bytes);
        Contents::look_at(&mut Cursor::new(disk)).unwrap()
    }

    /// What is on a disk until the last step of [`Header::write_to`].
    fn unfinished() -> Vec<u8> {
        let mut disk = Cursor::new(Vec::new());
        let stopped = header().write_to(&mut disk, |_| Err(io::ErrorKind::Interrupted.into()));
        assert!(stopped.is_err());
        disk.into_inner()
    }

    #[test]
    fn zeros_are_blank() {
        assert!(matches!(look_at_disk_with(&[]), Contents::Blank));
    }

    #[test]
    fn unfinished_header_is_recognised_whatever_is_behind_it() {
        let mut disk = unfinished();
        assert!(matches!(look_at_disk_with(&disk), Contents::Unfinished));
        disk.extend([7; 100_000]);
        assert!(matches!(look_at_disk_with(&disk), Contents::Unfinished));
    }

    #[test]
    fn any_flipped_bit_in_the_mark_of_an_unfinished_header_is_refused() {
        let good = unfinished();
        for position in 0..good.len() * 8 {
            let mut disk = good.clone();
            disk[position / 8] ^= 1 << (position % 8);
            let contents = look_at_start(&disk);
            assert!(matches!(contents, Contents::Other(_)), "bit {position}: {contents:?}");
        }
    }

    /// The same without the end of the disk, which only tells whether it is blank.
    fn look_at_start(bytes: &[u8]) -> Contents {
        let mut disk = vec![0; 64 << 10];
        disk[..bytes.len()].copy_from_slice(bytes);
        Contents::look_at(&mut Cursor::new(disk)).unwrap()
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        let contents = look_at_disk_with(b"LUKS\xba\xbe");
        assert!(
            matches!(contents, Contents::Other(HeaderError::Version { found: 0, .. })),
            "{contents:?}"
        );
    }

    #[test]
    fn disk_smaller_than_a_sector_can_be_looked_at() {
        assert!(matches!(
            Contents::look_at(&mut Cursor::new(vec![0; 100])).unwrap(),
            Contents::Blank
        ));
    }
}
