//! What the last `make up` left behind: how long its steps took, and what its nodes said.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use service_runtime::Memory;
use test_figures::{Table, time};

use crate::node::said_memory;

/// What a bootstrapper says when its work is done.
const DONE: [&str; 2] = ["node is the first of a cluster", "node is a member"];

/// What we call them, and the steps of `constellation apply` that they are.
const PARTS: [(&str, &[&str]); 3] = [
    (
        "boot to bootstrapper",
        &["creating the control plane machines", "waiting for the first node"],
    ),
    ("init", &["creating the cluster"]),
    ("join, until all nodes are Ready", &["waiting for all nodes"]),
];

/// The file `timings.json` of a workspace.
#[derive(Deserialize)]
struct Timings {
    total_seconds: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    step: String,
    seconds: f64,
    succeeded: bool,
}

pub(crate) fn times(workspace: &Path) -> Table {
    let mut table = Table::new("Local cluster, last `make up`", &["time"]);
    match load(&workspace.join("timings.json")) {
        Err(error) => table.note(format!("{error:#}; `make up` records them again")),
        Ok(None) => table.note("There is no cluster in local/. `make up` creates one and records its timings."),
        Ok(Some(timings)) => {
            for (name, steps) in PARTS {
                table.row(name, [timings.of(steps)]);
            }
            table.row("altogether", [seconds(timings.total_seconds)]);
        }
    }
    table
}

/// What the bootstrappers of the nodes needed, by the names of the nodes, as far as they came to their end.
pub(crate) fn bootstrappers(workspace: &Path) -> Result<Vec<(String, Memory)>> {
    let folder = workspace.join("constellation-qemu/nodes");
    let nodes = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        nodes => nodes?,
    };
    let mut found = Vec::new();
    for node in nodes {
        let node = node?;
        let console = fs::read(node.path().join("console.log")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let memory = DONE.into_iter().find_map(|state| said_memory(&console, state));
        found.extend(memory.map(|memory| (node.file_name().to_string_lossy().into_owned(), memory)));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

fn load(path: &Path) -> Result<Option<Timings>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        bytes => serde_json::from_slice(&bytes?)
            .with_context(|| format!("{} has no times that this version knows", path.display()))
            .map(Some),
    }
}

impl Timings {
    /// How long these steps took, if all of them came to a good end.
    fn of(&self, names: &[&str]) -> String {
        let steps: Vec<&Step> = self
            .steps
            .iter()
            .filter(|step| names.contains(&step.step.as_str()))
            .collect();
        let sum = seconds(steps.iter().map(|step| step.seconds).sum());
        if steps.iter().any(|step| !step.succeeded) {
            format!("failed after {sum}")
        } else if steps.len() < names.len() {
            "not done".to_owned()
        } else {
            sum
        }
    }
}

fn seconds(seconds: f64) -> String {
    time(Duration::from_secs_f64(seconds))
}
