//! What the host sees of a running machine from outside: its disks, variables and memory.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::machine::MEMORY;
use crate::variables::{self, Variable};
use crate::vm::Vm;

impl Vm {
    /// How often the guest tried in vain to read from a disk of this name, and how many bytes it wrote to it.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn disk_traffic(&self, drive: &str) -> Result<(u64, u64)> {
        let disks = self.monitor()?.execute("query-blockstats", json!({}))?;
        let disk = named(&disks, "device", drive)?;
        let number = |field: &str| disk["stats"][field].as_u64().with_context(|| format!("no {field}"));
        Ok((number("failed_rd_operations")?, number("wr_bytes")?))
    }

    /// How often the guest read from a disk of this name.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn disk_reads(&self, drive: &str) -> Result<u64> {
        let disks = self.monitor()?.execute("query-blockstats", json!({}))?;
        let stats = &named(&disks, "device", drive)?["stats"];
        let number = |field: &str| stats[field].as_u64().with_context(|| format!("no {field}"));
        Ok(number("rd_operations")? + number("failed_rd_operations")?)
    }

    /// Whether the guest has a driver for the virtio device of this id (Virtual I/O Device 1.3, section 2.1).
    ///
    /// # Errors
    /// When there is no such device.
    pub fn has_driver(&self, device: &str) -> Result<bool> {
        let path = format!("/machine/peripheral/{device}/virtio-backend");
        let device = self
            .monitor()?
            .execute("x-query-virtio-status", json!({"path": path}))?;
        let bits = device["status"]["statuses"].as_array().context("no status bits")?;
        Ok(bits.iter().any(|bit| {
            bit.as_str()
                .is_some_and(|bit| bit.starts_with("VIRTIO_CONFIG_S_DRIVER:"))
        }))
    }

    /// The firmware's variables, in the order in which they were written.
    ///
    /// # Errors
    /// When the store has another form.
    pub fn variables(&self) -> Result<Vec<Variable>> {
        variables::read(&self.file("vars.fd")).context("reading the firmware's variables")
    }

    /// Some of the guest's memory.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn memory(&self, address: u64, len: u64) -> Result<Vec<u8>> {
        let file = self.file("memory");
        let arguments = json!({"val": address, "size": len, "filename": file});
        self.monitor()?.execute("pmemsave", arguments)?;
        let memory = fs::read(&file)?;
        fs::remove_file(&file)?;
        Ok(memory)
    }

    /// The names that the kernel has for the machine (`struct new_utsname`, include/uapi/linux/utsname.h), the remains of former
    /// ones among them.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn host_names(&self) -> Result<BTreeSet<String>> {
        const FIELD_LEN: usize = 65;
        let mut system_name = b"Linux".to_vec();
        system_name.resize(FIELD_LEN, 0);
        let fields = self.memory_after(&system_name, FIELD_LEN)?;
        let text = |field: Vec<u8>| String::from_utf8_lossy(&field).trim_end_matches('\0').to_owned();
        Ok(fields.into_iter().map(text).collect())
    }

    /// The bytes that follow a text, wherever the guest's memory holds it.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn memory_after(&self, text: &[u8], len: usize) -> Result<Vec<Vec<u8>>> {
        /// What is read at once.
        const PIECE: u64 = 64 << 20;
        let mut found = Vec::new();
        for start in (0..MEMORY).step_by(PIECE as usize) {
            let piece = self.memory(start, PIECE)?;
            let ends = memchr::memmem::find_iter(&piece, text).map(|position| position + text.len());
            found.extend(ends.filter_map(|end| Some(piece.get(end..end + len)?.to_vec())));
        }
        Ok(found)
    }
}

fn named<'a>(list: &'a Value, field: &str, name: &str) -> Result<&'a Value> {
    let list = list.as_array().context("QEMU gave no list")?;
    list.iter()
        .find(|item| item[field] == name)
        .with_context(|| format!("there is no {name}"))
}
