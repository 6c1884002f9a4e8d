//! The mark of a header that is being written.
//!
//! A header cannot be written in one step, and a power cut between two steps would leave a disk that is neither blank nor
//! ours. So its first sector says "unfinished" until everything else is written: a disk writes a sector as a whole or not
//! at all, even when the power fails (NVM Express: AWUPF is at least one logical block).

/// The size that a disk writes as a whole, in bytes: the smallest logical block.
pub(super) const SECTOR: usize = 512;

/// Never the beginning of a header, which is LUKS2's magic.
const TEXT: &[u8] = b"constellation state disk: never joined, header unfinished";

/// The first sector of a disk whose header is being written.
pub(super) fn first_sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..TEXT.len()].copy_from_slice(TEXT);
    sector
}
