//! What the last `make up` left behind: how long its steps took, what its nodes said, and what they cost while nothing happens.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use service_runtime::Memory;
use test_figures::{Table, processor_time, time};

use crate::node::said_memory;
use crate::progress::say;

/// Long enough for everything that a node does at least every half minute.
const IDLE_TIME: Duration = Duration::from_secs(120);

/// What a bootstrapper says when its work is done.
const DONE: [&str; 2] = ["node is the first of a cluster", "node is a member"];

/// What we call them, and the steps of `constellation apply` that they are.
const PARTS: [(&str, &[&str]); 3] = [
    (
        "boot to bootstrapper",
        &["creating the machines", "waiting for the first node"],
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
            if let Some(ratio) = timings.boots() {
                table.row(
                    "altogether, in boots of the first node",
                    [format!("{ratio:.1}"), "aim: 11".to_owned()],
                );
            }
        }
    }
    table
}

/// What the bootstrappers of the nodes needed, by the names of the nodes, as far as they came to their end.
pub(crate) fn bootstrappers(workspace: &Path) -> Result<Vec<(String, Memory)>> {
    let mut found = Vec::new();
    for (name, folder) in nodes(workspace)? {
        let console = fs::read(folder.join("console.log")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let memory = DONE.into_iter().find_map(|state| said_memory(&console, state));
        found.extend(memory.map(|memory| (name, memory)));
    }
    Ok(found)
}

/// How much of the host's processors the nodes use while nobody uses the cluster.
pub(crate) fn idle(workspace: &Path) -> Result<Table> {
    let mut table = Table::new("Idle node of the local cluster", &["cores of the host"]);
    let mut machines = Vec::new();
    for (name, folder) in nodes(workspace)? {
        let Ok(process) = fs::read_to_string(folder.join("qemu.pid")) else {
            table.note(format!("{name} does not run."));
            continue;
        };
        machines.push((name, process.trim().parse().context("reading qemu.pid")?));
    }
    if machines.is_empty() {
        table.note("There is no cluster in local/. `make up` creates one.");
        return Ok(table);
    }
    say("letting the local cluster idle");
    let used = || {
        machines
            .iter()
            .map(|(_, process)| processor_time(*process))
            .collect::<Result<Vec<_>>>()
    };
    let (start, before) = (Instant::now(), used()?);
    thread::sleep(IDLE_TIME);
    let (elapsed, after) = (start.elapsed(), used()?);
    for ((name, _), (before, after)) in machines.iter().zip(before.into_iter().zip(after)) {
        let cores = (after - before).as_secs_f64() / elapsed.as_secs_f64();
        let aim = name
            .starts_with("control-plane")
            .then(|| "aim: under 0.5 without KVM".to_owned());
        table.row(name, [format!("{cores:.2}")].into_iter().chain(aim));
    }
    Ok(table)
}

/// Names and folders of the nodes, sorted by name.
fn nodes(workspace: &Path) -> Result<Vec<(String, PathBuf)>> {
    let nodes = match fs::read_dir(workspace.join("constellation-qemu/nodes")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        nodes => nodes?,
    };
    let mut found = Vec::new();
    for node in nodes {
        let node = node?;
        found.push((node.file_name().to_string_lossy().into_owned(), node.path()));
    }
    found.sort();
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
    /// The time of the whole command as a multiple of the first node's boot, which tells how fast this machine is.
    fn boots(&self) -> Option<f64> {
        let (_, boot) = PARTS[0];
        let boot: f64 = self.steps_of(boot).iter().map(|step| step.seconds).sum();
        let complete = self.steps.iter().all(|step| step.succeeded);
        (complete && boot > 0.0).then(|| self.total_seconds / boot)
    }

    fn steps_of(&self, names: &[&str]) -> Vec<&Step> {
        let wanted = |step: &&Step| names.contains(&step.step.as_str());
        self.steps.iter().filter(wanted).collect()
    }

    /// How long these steps took, if all of them came to a good end.
    fn of(&self, names: &[&str]) -> String {
        let steps = self.steps_of(names);
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
