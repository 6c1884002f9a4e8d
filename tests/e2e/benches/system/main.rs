//! What the product costs as it is shipped: requests to its services, memory, the image, and the times of a local cluster.
//!
//! The services are the static programs of the node image, run as processes beside a real etcd and kube-apiserver, with
//! software TPMs. The bootstrapper powers its machine off when it cannot go on, so it is looked at where it belongs: in a VM that
//! boots the image. `make bench` sets everything up.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its figures and what it does"
)]

mod cluster;
mod joins;
mod keys;
mod load;
mod node;
mod progress;
mod services;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use service_runtime::Memory;
use test_figures::{Table, mebibytes};

/// Names the folder with the static programs of nodes and pods; `cargo xtask image build` compiles them.
const PROGRAMS: &str = "CONSTELLATION_PROGRAMS";
/// Names the workspace of the local cluster.
const WORKSPACE: &str = "CONSTELLATION_WORKSPACE";

fn main() -> Result<()> {
    let workspace = folder(WORKSPACE)?;
    let idle = cluster::idle(&workspace)?;
    let services = services::measure(&folder(PROGRAMS)?)?;
    let node = node::measure()?;

    print!("{}", services.requests);
    print!("{}", memory(services.memory, &node, &workspace)?);
    print!("{}", node.table());
    print!("{}", cluster::times(&workspace));
    print!("{idle}");
    Ok(())
}

fn folder(variable: &str) -> Result<PathBuf> {
    let folder = env::var_os(variable).with_context(|| format!("{variable} is not set: use `make bench`"))?;
    Ok(folder.into())
}

fn memory(mut processes: Vec<(&'static str, Memory)>, node: &node::Figures, workspace: &Path) -> Result<Table> {
    processes.push(("bootstrapper, in a VM that waits", node.bootstrapper));
    let mut table = Table::new("Memory of processes", &["resident", "peak"]);
    for (name, memory) in &processes {
        table.row(*name, cells(*memory));
    }
    let sum = |part: fn(&Memory) -> u64| processes.iter().map(|(_, memory)| part(memory)).sum();
    let together = Memory {
        resident: sum(|memory| memory.resident),
        peak: sum(|memory| memory.peak),
    };
    let aim = "aim: under 40 MiB".to_owned();
    table.row("together", cells(together).into_iter().chain([aim]));
    for (name, memory) in cluster::bootstrappers(workspace)? {
        table.row(format!("bootstrapper of {name}, last `make up`"), cells(memory));
    }
    table.note("The services after the requests above. VmRSS and VmHWM: pages of the program itself included.");
    Ok(table)
}

fn cells(memory: Memory) -> [String; 2] {
    [memory.resident, memory.peak].map(|kib| mebibytes(kib * 1024))
}
