//! The numbers of the only shape that we format.
//!
//! Offsets and sizes are from the LUKS2 On-Disk Format Specification 1.1.4, section 2, for the sizes that
//! cryptsetup 2.4 to 2.8 choose without options (`lib/luks2/luks2_json_format.c`).

/// LUKS format version.
pub(crate) const VERSION: u16 = 2;
/// Binary header of one copy, in bytes.
pub(crate) const BINARY_SIZE: usize = 4096;
/// JSON area of one copy, in bytes.
pub(crate) const JSON_SIZE: usize = 12288;
/// Binary header and JSON area, in bytes.
pub(crate) const COPY_SIZE: usize = BINARY_SIZE + JSON_SIZE;
/// Both copies, in bytes; the keyslots area follows.
pub(crate) const METADATA_SIZE: usize = 2 * COPY_SIZE;
/// Area for all keyslots, in bytes.
pub(crate) const KEYSLOTS_SIZE: u64 = HEADER_SIZE - METADATA_SIZE as u64;
/// Everything before the encrypted data, in bytes.
pub const HEADER_SIZE: u64 = 16 << 20;

/// AES-256-XTS takes 64 bytes, HMAC-SHA256 takes 32.
pub(crate) const VOLUME_KEY_SIZE: u64 = 96;
/// Stripes of the anti-forensic splitter.
pub(crate) const AF_STRIPES: u64 = 4000;
/// The volume key in stripes, rounded up to whole 4096-byte blocks.
pub(crate) const AREA_SIZE: u64 = (VOLUME_KEY_SIZE * AF_STRIPES).next_multiple_of(4096);
/// Keyslot areas start at multiples of this.
pub(crate) const AREA_ALIGNMENT: u64 = 4096;
/// AES-256-XTS takes 64 bytes.
pub(crate) const AREA_CIPHER_KEY_SIZE: u64 = 64;
/// Cipher of keyslot and data.
pub(crate) const CIPHER: &str = "aes-xts-plain64";
/// Sector size of dm-crypt and dm-integrity, in bytes.
pub(crate) const SECTOR_SIZE: u64 = 4096;

/// Most passes of argon2id. The predecessor chose as many as fit into two seconds, which is about 130 on a fast machine.
pub(crate) const MAX_TIME: u64 = 256;
/// The predecessor's limit, and ours. The host can write this number, and 4 GiB would end the boot without an error message.
pub(crate) const MAX_MEMORY_KIB: u64 = 65536;
/// libcryptsetup's own minimum (`lib/utils_pbkdf.c`).
pub(crate) const MIN_MEMORY_KIB: u64 = 32;
/// libcryptsetup's own maximum.
pub(crate) const MAX_CPUS: u64 = 4;
/// libcryptsetup's own minimum.
pub(crate) const MIN_DIGEST_ITERATIONS: u64 = 1000;
/// libcryptsetup chooses as many as fit into 125 ms, which is below a million today. Four million take seconds.
pub(crate) const MAX_DIGEST_ITERATIONS: u64 = 4_000_000;

/// Type of our token.
pub(crate) const TOKEN_TYPE: &str = "constellation-state-disk";
