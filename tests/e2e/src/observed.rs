//! What the host sees of a running machine from outside: its disks, variables and memory.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

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
}

fn named<'a>(list: &'a Value, field: &str, name: &str) -> Result<&'a Value> {
    let list = list.as_array().context("QEMU gave no list")?;
    list.iter()
        .find(|item| item[field] == name)
        .with_context(|| format!("there is no {name}"))
}
