use std::io::{self, Read, Seek};

use cluster_types::DiskUuid;

use crate::device::is_blank;
use crate::header::{ExpectedDisk, Header, HeaderError, ReadHeaderError, is_unfinished};

/// The contents of a disk.
#[derive(Debug)]
pub enum Contents {
    /// Zeros in all the places where contents would be recognised.
    Blank,
    /// Part of a header that was being written when the power failed: [`Header::write_to`]. What is behind the mark was not
    /// looked at, and may even be the rest of the header of a node that has joined.
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

    /// Nobody can prevent this: the first of them is what a new disk looks like, the second what a power cut leaves, and the third
    /// what was on this disk before.
    #[test]
    fn the_host_can_make_a_joined_disk_look_as_if_its_node_never_joined() {
        let joined = disk_with(&header().marked(true));
        assert!(matches!(
            look_at_disk_with(&joined),
            Contents::Ours { initialised: true, .. }
        ));
        assert!(matches!(look_at_disk_with(&vec![0; joined.len()]), Contents::Blank));
        let mark = unfinished();
        let planted = [mark.as_slice(), &joined[mark.len()..]].concat();
        assert!(matches!(look_at_disk_with(&planted), Contents::Unfinished));
        let put_back = disk_with(&header());
        assert!(matches!(
            look_at_disk_with(&put_back),
            Contents::Ours { initialised: false, .. }
        ));
    }

    fn disk_with(header: &Header) -> Vec<u8> {
        let mut disk = Cursor::new(Vec::new());
        header.write_to(&mut disk, |_| Ok(())).unwrap();
        disk.into_inner()
    }

    #[test]
    fn disk_smaller_than_a_sector_can_be_looked_at() {
        assert!(matches!(
            Contents::look_at(&mut Cursor::new(vec![0; 100])).unwrap(),
            Contents::Blank
        ));
    }
}
