//! A hostile ACPI table.

/// The body of a secondary table (SSDT) that writes a value to physical memory as soon as the kernel loads it. QEMU's
/// `-acpitable` puts the header in front. In the language of tables:
///
/// ```text
/// OperationRegion (DOOR, SystemMemory, address, 4)
/// Field (DOOR, DWordAcc, NoLock, Preserve) { MARK, 32 }
/// Store (value, MARK)
/// ```
///
/// The bytes are those of the ACPI Specification 6.5, sections 20.2.5.2 (named objects) and 20.2.5.4 (Store).
#[must_use]
pub fn table_that_writes(address: u32, value: u32) -> Vec<u8> {
    const DWORD: u8 = 0x0c;
    const BYTE: u8 = 0x0a;
    const SYSTEM_MEMORY: u8 = 0;
    const DWORD_ACCESS: u8 = 3;
    let region = [
        &[0x5b, 0x80],
        &b"DOOR"[..],
        &[SYSTEM_MEMORY, DWORD],
        &address.to_le_bytes(),
        &[BYTE, 4],
    ];
    // The length counts itself and what follows: 1 + 4 + 1 + 4 + 1 bytes. The unit of a field's width is a bit.
    let field = [&[0x5b, 0x81, 11], &b"DOOR"[..], &[DWORD_ACCESS], b"MARK", &[32]];
    let store = [&[0x70, DWORD], &value.to_le_bytes()[..], b"MARK"];
    [region.concat(), field.concat(), store.concat()].concat()
}
