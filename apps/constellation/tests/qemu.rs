//! The released program with its local provider: a command that is killed at any point leaves something that `mini up` goes on with
//! and `mini down` removes, and what QEMU needs is said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;

use support::{Host, stderr};

/// What `mini up` says, in order, until it waits for a node that never answers. Workers are made when there is a cluster:
/// `init.rs` kills it there.
const POINTS: [&str; 4] = [
    "creating the control plane machines\n",
    "start the metadata endpoint\n",
    "create control-plane-0\n",
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
        // One metadata endpoint, and two programs for the node: nothing was started twice.
        assert_eq!(host.processes().len(), 3, "{point}");
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
    let mut running = host.until(&arguments, "creating the control plane machines");
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
    let (code, said) = host.until(&["mini", "up"], "creating the control plane machines").end();
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
    assert_eq!((first.processes().len(), second.processes().len()), (3, 3));
    assert!(first.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!((first.processes().len(), second.processes().len()), (0, 3));
}

/// No file can be written: neither the state nor, after that, the times of the steps.
#[test]
fn the_first_error_on_a_full_disk_is_the_one_that_is_told() {
    let host = configured();
    let workspace = cluster_config::Workspace::open(&host.workspace()).unwrap();
    workspace.save_state(&cluster_config::ClusterState::new()).unwrap();
    let program = host.command(&["apply", "--yes"]);
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let mut shell = std::process::Command::new("sh");
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
        told.contains("cannot write") && told.contains("constellation-state.yaml"),
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
