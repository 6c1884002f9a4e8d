//! The mark of a header that is being written.
//!
//! A header cannot be written in one step, and a power cut between two steps would leave a disk that is neither blank nor
//! ours. So its first sector says "unfinished" until everything else is there: a disk writes one sector as a whole or not
//! at all, even when the power goes (NVM Express: AWUPF is at least one logical block).

/// What a disk writes as a whole, in bytes: the smallest logical block there is.
pub(super) const SECTOR: usize = 512;

/// Never the beginning of a header: that is LUKS2's magic.
const TEXT: &[u8] = b"constellation state disk: never joined, header unfinished";

/// The first sector of a disk whose header is being written.
pub(super) fn first_sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..TEXT.len()].copy_from_slice(TEXT);
    sector
}
