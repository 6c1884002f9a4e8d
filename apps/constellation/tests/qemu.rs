//! The released program with its local provider: a command that is killed at any point leaves something that `mini up` goes on with
//! and `mini down` removes, and what QEMU needs is said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::Command;

use support::{Host, stderr, stdout};

/// What `mini up` says, in order, until it waits for a node that never answers.
const POINTS: [&str; 5] = [
    "creating the machines\n",
    "start the metadata endpoint\n",
    "create control-plane-0\n",
    "create worker-0\n",
    "control-plane-0 is booting\n",
];
const LAST: &str = POINTS[POINTS.len() - 1];

fn configured() -> Host {
    let host = Host::released();
    host.configure();
    host
}

fn killed_at(point: &str) -> Host {
    let host = configured();
    host.until(&["mini", "up"], point).kill();
    host
}

#[test]
fn down_after_a_kill_leaves_nothing() {
    for point in POINTS {
        let host = killed_at(point);
        let down = host.run(&["mini", "down", "--yes"]);
        assert!(down.status.success(), "{point}: {}", stderr(&down));
        assert_eq!(host.files(), ["constellation-conf.yaml"], "{point}");
        assert_eq!(host.processes(), Vec::<i32>::new(), "{point}");
    }
}

#[test]
fn up_after_a_kill_goes_on() {
    for point in POINTS {
        let host = killed_at(point);
        host.until(&["mini", "up"], LAST).kill();
        // One metadata endpoint, and two programs for each node: nothing was started twice.
        assert_eq!(host.processes().len(), 5, "{point}");
        assert!(host.run(&["mini", "down", "--yes"]).status.success(), "{point}");
        assert_eq!(host.processes(), Vec::<i32>::new(), "{point}");
    }
}

#[test]
fn up_again_changes_nothing_that_runs() {
    let host = killed_at(LAST);
    let before = (
        host.processes(),
        fs::read(host.workspace().join("constellation-state.yaml")).unwrap(),
    );
    host.until(&["mini", "up"], LAST).kill();
    let after = (
        host.processes(),
        fs::read(host.workspace().join("constellation-state.yaml")).unwrap(),
    );
    assert_eq!(before, after);
}

#[test]
fn a_configuration_of_our_own_is_taken_away_again() {
    let host = Host::released();
    let (image, mirror) = (host.path("image"), host.path("mirror"));
    let arguments = [
        "mini",
        "up",
        "--image",
        image.to_str().unwrap(),
        "--mirror",
        mirror.to_str().unwrap(),
    ];
    // The scripts are no machines for a probe, and the real firmware may be missing: both outcomes leave files.
    host.run(&["version"]);
    let mut running = host.until(&arguments, "creating the machines");
    running.until("\n");
    running.kill();
    assert!(host.files().contains(&"constellation-conf.yaml".to_owned()));
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_node_that_dies_is_told_with_its_reason_and_made_anew() {
    let host = configured();
    fs::write(host.path("bin/die"), "").unwrap();
    let (code, said) = host.until(&["mini", "up"], "creating the machines").end();
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "control-plane-0 stopped",
        "state disk: the header is not ours",
        "Next: ",
    ] {
        assert!(said.contains(part), "{said}");
    }
    fs::remove_file(host.path("bin/die")).unwrap();
    let running = host.until(&["mini", "up"], LAST);
    assert!(running.said.contains("replace control-plane-0"), "{}", running.said);
    running.kill();
}

#[test]
fn two_commands_do_not_meet() {
    let host = configured();
    let running = host.until(&["mini", "up"], LAST);
    let error = stderr(&host.run(&["mini", "down", "--yes"]));
    assert!(error.contains("another constellation command"), "{error}");
    running.kill();
}

#[test]
fn two_clusters_live_side_by_side() {
    let (first, second) = (killed_at(LAST), killed_at(LAST));
    assert_eq!((first.processes().len(), second.processes().len()), (5, 5));
    assert!(first.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!((first.processes().len(), second.processes().len()), (0, 5));
}

#[test]
fn a_copied_workspace_is_refused_and_the_machines_of_the_original_run_on() {
    let host = killed_at(LAST);
    let (original, copy) = (host.workspace(), host.path("copy"));
    let copied = Command::new("cp").arg("-a").args([&original, &copy]).status().unwrap();
    assert!(copied.success());
    let processes = host.processes();
    for arguments in [
        &["status"][..],
        &["apply", "--yes"],
        &["mini", "up"],
        &["mini", "down", "--yes"],
        &["terminate", "--yes"],
    ] {
        let output = host.command_in(&copy, arguments).output().unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        let [original, copy] = [&original, &copy].map(|folder| folder.canonicalize().unwrap().display().to_string());
        let named = format!("{copy} looks like a copy of {original}");
        assert!(error.contains(&named), "{arguments:?}: {error}");
        assert_eq!(host.processes(), processes, "{arguments:?}");
        assert_eq!(list(&copy), list(&original), "{arguments:?}");
    }
    fs::remove_dir_all(&copy).unwrap();
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.processes(), Vec::<i32>::new());
}

/// The original was removed: nobody else can end what still runs there.
#[test]
fn what_runs_in_a_removed_workspace_is_ended_from_its_copy() {
    let host = killed_at(LAST);
    let original = host.path("original");
    fs::rename(host.workspace(), &original).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .args([&original, &host.workspace()])
        .status()
        .unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&original).unwrap();
    let down = host.run(&["mini", "down", "--yes"]);
    assert!(down.status.success(), "{}", stderr(&down));
    assert_eq!(host.processes(), Vec::<i32>::new());
}

#[test]
fn a_renamed_workspace_goes_on_with_its_machines_and_their_metadata() {
    let host = killed_at(LAST);
    let processes = host.processes();
    let renamed = host.path("renamed");
    fs::rename(host.workspace(), &renamed).unwrap();
    let status = host.command_in(&renamed, &["status"]).output().unwrap();
    assert!(stdout(&status).contains("running"), "{}", stdout(&status));
    let record = fs::read(renamed.join("constellation-qemu/cluster.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let port = record["metadata_port"].as_u64().unwrap().try_into().unwrap();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream
        .write_all(b"GET /nodes/control-plane-0/self HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("10.42.1.100"), "{answer}");
    fs::rename(&renamed, host.workspace()).unwrap();
    host.until(&["mini", "up"], LAST).kill();
    assert_eq!(host.processes(), processes);
}

#[test]
fn a_machine_on_a_full_disk_is_named_and_goes_on_with_the_next_run() {
    let host = configured();
    let waiting = host.until(&["mini", "up"], LAST);
    let processes = host.processes();
    let node = host.workspace().join("constellation-qemu/nodes/control-plane-0");
    let full = format!("the disk that holds {} is full", node.canonicalize().unwrap().display());
    let listener = UnixListener::bind(node.join("qmp.sock")).unwrap();
    std::thread::spawn(move || serve_monitor(&listener));
    let (code, said) = waiting.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("control-plane-0 is paused: {full}")), "{said}");
    let status = stdout(&host.run(&["status"]));
    assert!(status.contains("paused") && status.contains(&full), "{status}");
    let resuming = host.until(&["mini", "up"], LAST);
    assert!(
        resuming.said.contains("resume control-plane-0, which is paused"),
        "{}",
        resuming.said
    );
    resuming.kill();
    let status = stdout(&host.run(&["status"]));
    assert!(status.contains("running"), "{status}");
    assert_eq!(host.processes(), processes);
}

/// The monitor of a machine that could not write, until it is told to go on.
fn serve_monitor(listener: &UnixListener) {
    let mut status = "io-error";
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        writeln!(&stream, r#"{{"QMP": {{}}}}"#).unwrap();
        for line in BufReader::new(&stream).lines().map_while(Result::ok) {
            if line.contains("cont") {
                status = "running";
            }
            writeln!(&stream, r#"{{"return": {{"status": "{status}"}}}}"#).unwrap();
        }
    }
}

fn list(folder: &str) -> Vec<String> {
    let found = Command::new("find")
        .arg(folder)
        .args(["-printf", "%P\n"])
        .output()
        .unwrap();
    let mut paths: Vec<_> = stdout(&found).lines().map(str::to_owned).collect();
    paths.sort_unstable();
    paths
}

/// No file can be written: neither the master secret nor, after that, the times of the steps.
#[test]
fn the_first_error_on_a_full_disk_is_the_one_that_is_told() {
    let host = configured();
    let workspace = cluster_config::Workspace::open(&host.workspace()).unwrap();
    workspace.save_state(&cluster_config::ClusterState::new()).unwrap();
    let program = host.command(&["apply", "--yes"]);
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sh"])
        .arg(program.get_program())
        .args(program.get_args());
    shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    let told: Vec<_> = error.lines().filter(|line| line.starts_with("Error: ")).collect();
    let [told] = told.as_slice() else { panic!("{error}") };
    assert!(
        told.contains("cannot write") && told.contains("constellation-mastersecret.json"),
        "{error}"
    );
    assert!(error.contains("cannot keep the timings of the steps"), "{error}");
}

#[test]
fn what_the_machine_lacks_is_told_at_once() {
    let host = configured();
    fs::remove_file(host.path("firmware/OVMF_VARS_4M.fd")).unwrap();
    let output = host
        .command(&["apply", "-y"])
        .env("PATH", host.path("mirror"))
        .output()
        .unwrap();
    let error = stderr(&output);
    for part in [
        "qemu-system-x86",
        "bookworm-backports",
        "swtpm",
        "OVMF_VARS_4M.fd",
        "provider.qemu.firmware",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_old_qemu_is_refused() {
    let host = configured();
    host.script(
        "qemu-system-x86_64",
        "#!/bin/sh\necho 'QEMU emulator version 7.2.19 (Debian)'\n",
    );
    let error = stderr(&host.run(&["apply", "-y"]));
    assert!(
        error.contains("version 7") && error.contains("bookworm-backports"),
        "{error}"
    );
}

#[test]
fn the_programs_it_starts_for_itself_check_what_they_are_given() {
    let host = Host::released();
    for (arguments, named) in [
        (&["internal"][..], &["Usage: constellation internal"][..]),
        (&["internal", "exec"], &["<RECORD>", "<PROGRAM>"]),
        (
            &["internal", "exec", "/nonexistent/record", "true"],
            &["true", "No such file"],
        ),
        (&["internal", "serve-metadata"], &["<FOLDER>"]),
        (
            &["internal", "serve-metadata", "/nonexistent"],
            &["/nonexistent contains no cluster"],
        ),
    ] {
        let output = host.bare_command().args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let error = stderr(&output);
        assert!(named.iter().all(|name| error.contains(name)), "{arguments:?}: {error}");
    }
}
