//! The firmware's store of variables, which the host keeps in a file and can write before the machine starts.
//!
//! The file is a firmware volume (`EFI_FIRMWARE_VOLUME_HEADER`, UEFI Platform Initialization Specification 1.8, volume 3, section 3.2.1)
//! whose content is EDK II's variable store (`MdeModulePkg/Include/Guid/VariableFormat.h`): `VARIABLE_STORE_HEADER`, then one
//! `AUTHENTICATED_VARIABLE_HEADER` with name and data after another, then erased flash, which is bytes of ones.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use uuid::{Uuid, uuid};

/// Vendors: systemd itself, what speaks the Boot Loader Interface, and UEFI (`EFI_GLOBAL_VARIABLE`).
const SYSTEMD: Uuid = uuid!("8cf2644b-4b0b-428f-9387-6d876050dc67");
const LOADER: Uuid = uuid!("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
const UEFI: Uuid = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");

/// Where a firmware volume header says its own length.
const VOLUME_HEADER_LEN: usize = 48;
/// `gEfiAuthenticatedVariableGuid`, with which a `VARIABLE_STORE_HEADER` begins, and the length of that header.
const STORE: Uuid = uuid!("aaf32c78-947b-439a-a180-2e144ec37792");
const STORE_HEADER_LEN: usize = 28;
/// `VARIABLE_DATA`, with which an entry begins.
const START: u16 = 0x55aa;
/// `VAR_ADDED`: the state of an entry that is complete and was not deleted.
const ADDED: u8 = 0x3f;
/// Length of an `AUTHENTICATED_VARIABLE_HEADER`.
const HEADER_LEN: usize = 60;
/// `HEADER_ALIGNMENT`: every entry begins at a multiple of it.
const ALIGNMENT: usize = 4;
/// Non-volatile, for boot services, for the running system (UEFI 2.10, section 8.2.1).
const ATTRIBUTES: u32 = 7;

/// A variable of the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    vendor: Uuid,
    name: String,
    data: Vec<u8>,
}

impl Variable {
    /// One that systemd reads.
    #[must_use]
    pub fn systemd(name: &str, value: &str) -> Self {
        Self::new(SYSTEMD, name, utf16(value))
    }

    /// One of the Boot Loader Interface.
    #[must_use]
    pub fn loader(name: &str, value: &str) -> Self {
        Self::new(LOADER, name, utf16(value))
    }

    /// A boot entry that starts this file of the EFI system partition with these options, and the order to boot it next
    /// (UEFI 2.10, section 3.3). The firmware deletes the order when it follows it.
    #[must_use]
    pub fn boot_next(file: &str, options: &str) -> [Self; 2] {
        [
            Self::new(UEFI, "Boot00EE", load_option(file, options)),
            Self::new(UEFI, "BootNext", vec![0xee, 0]),
        ]
    }

    fn new(vendor: Uuid, name: &str, data: Vec<u8>) -> Self {
        Self {
            vendor,
            name: name.to_owned(),
            data,
        }
    }

    /// Its name, without vendor.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An entry of the store, filled up to the next one. Monotonic count, time and public key are of no use here.
    fn encode(&self) -> Result<Vec<u8>> {
        let name = utf16(&self.name);
        let mut entry = Vec::with_capacity(HEADER_LEN + name.len() + self.data.len());
        entry.extend(START.to_le_bytes());
        entry.extend([ADDED, 0]);
        entry.extend(ATTRIBUTES.to_le_bytes());
        entry.extend([0; 8 + 16 + 4]);
        entry.extend(u32::try_from(name.len())?.to_le_bytes());
        entry.extend(u32::try_from(self.data.len())?.to_le_bytes());
        entry.extend(self.vendor.to_bytes_le());
        entry.extend(name);
        entry.extend(&self.data);
        entry.resize(entry.len().next_multiple_of(ALIGNMENT), 0xff);
        Ok(entry)
    }
}

/// Writes variables behind those that are there.
pub(crate) fn plant(file: &Path, variables: &[Variable]) -> Result<()> {
    let store = fs::read(file)?;
    let end = entries(&store)?.last().map_or(first_entry(&store)?, |entry| entry.end);
    let mut bytes = Vec::new();
    for variable in variables {
        bytes.extend(variable.encode()?);
    }
    let free = store.get(end..end + bytes.len()).context("the store is full")?;
    ensure!(
        free.iter().all(|byte| *byte == 0xff),
        "the store is not erased behind its end"
    );
    Ok(File::options()
        .write(true)
        .open(file)?
        .write_all_at(&bytes, end as u64)?)
}

/// The variables that are there, in the order in which they were written.
pub(crate) fn read(file: &Path) -> Result<Vec<Variable>> {
    let entries = entries(&fs::read(file)?)?;
    Ok(entries.into_iter().filter_map(|entry| entry.variable).collect())
}

struct Entry {
    /// `None` when it was deleted.
    variable: Option<Variable>,
    end: usize,
}

fn entries(store: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut position = first_entry(store)?;
    while store.get(position..position + 2) == Some(&START.to_le_bytes()) {
        let entry = entry(store, position).with_context(|| format!("the entry at {position} is cut off"))?;
        position = entry.end;
        entries.push(entry);
    }
    Ok(entries)
}

fn first_entry(store: &[u8]) -> Result<usize> {
    let header = number(store, VOLUME_HEADER_LEN, 2).context("no firmware volume")?;
    let vendor = store.get(header..header + 16);
    ensure!(
        vendor == Some(&STORE.to_bytes_le()),
        "no store of authenticated variables"
    );
    Ok(header + STORE_HEADER_LEN)
}

fn entry(store: &[u8], position: usize) -> Option<Entry> {
    let name_len = number(store, position + 36, 4)?;
    let data_len = number(store, position + 40, 4)?;
    let vendor = store.get(position + 44..position + HEADER_LEN)?;
    let name = position + HEADER_LEN;
    let data = name + name_len;
    let variable = Variable {
        vendor: Uuid::from_bytes_le(vendor.try_into().ok()?),
        name: text(store.get(name..data)?),
        data: store.get(data..data + data_len)?.to_vec(),
    };
    Some(Entry {
        variable: (*store.get(position + 2)? == ADDED).then_some(variable),
        end: (data + data_len).next_multiple_of(ALIGNMENT),
    })
}

fn number(store: &[u8], position: usize, len: usize) -> Option<usize> {
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(store.get(position..position + len)?);
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

/// `EFI_LOAD_OPTION` (UEFI 2.10, section 3.1.3), active, with a device path that is nothing but the file (section 10.3.5.4):
/// the firmware looks for it on each disk.
fn load_option(file: &str, options: &str) -> Vec<u8> {
    const ACTIVE: u32 = 1;
    const FILE_NODE: [u8; 2] = [4, 4];
    const END: [u8; 4] = [0x7f, 0xff, 4, 0];
    let file = utf16(file);
    #[expect(clippy::cast_possible_truncation, reason = "a path of a few characters")]
    let node_len = 4 + file.len() as u16;
    let path = [&FILE_NODE, &node_len.to_le_bytes()[..], &file, &END].concat();
    #[expect(clippy::cast_possible_truncation, reason = "a path of a few characters")]
    let path_len = path.len() as u16;
    let description = utf16("planted");
    let parts = [
        &ACTIVE.to_le_bytes()[..],
        &path_len.to_le_bytes(),
        &description,
        &path,
        &utf16(options),
    ];
    parts.concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn text(utf16: &[u8]) -> String {
    let units: Vec<u16> = utf16
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store without variables.
    fn empty() -> Vec<u8> {
        let mut store = vec![0; 72];
        store[VOLUME_HEADER_LEN] = 72;
        store.extend(STORE.to_bytes_le());
        store.resize(72 + STORE_HEADER_LEN, 0);
        store.resize(4096, 0xff);
        store
    }

    #[test]
    fn planted_variables_are_found_again_until_they_are_deleted() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), empty())?;
        let (first, second) = (Variable::systemd("SystemdOptions", "odd"), Variable::loader("L", "x"));
        plant(file.path(), std::slice::from_ref(&first))?;
        plant(file.path(), std::slice::from_ref(&second))?;
        assert_eq!(read(file.path())?, [first, second.clone()]);

        let mut store = fs::read(file.path())?;
        store[72 + STORE_HEADER_LEN + 2] &= 0xfd;
        fs::write(file.path(), store)?;
        assert_eq!(read(file.path())?, [second]);
        Ok(())
    }
}
