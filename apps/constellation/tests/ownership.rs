//! A command removes or replaces only what the program wrote for the cluster.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;

use support::{Host, stderr, stdout};

const BOOTS: &str = "control-plane-0 is booting\n";
const SECRET: &str = "constellation-mastersecret.json";

/// Files of the user, by the names that the program uses too.
const OF_THE_USER: [&str; 6] = [
    "constellation-admin.conf",
    "constellation-cluster.log",
    "constellation-conf.yaml",
    SECRET,
    "constellation-qemu",
    "timings.json",
];

fn write(host: &Host, name: &str) {
    fs::write(host.workspace().join(name), "the user's").unwrap();
}

fn is_untouched(host: &Host, name: &str) -> bool {
    fs::read(host.workspace().join(name)).is_ok_and(|content| content == b"the user's")
}

fn configured() -> Host {
    let host = Host::released();
    host.configure();
    host
}

/// A master secret as another cluster has it.
fn foreign_secret(host: &Host) -> Vec<u8> {
    let path = host.workspace().join(SECRET);
    let secret = key_derivation::MasterSecret::generate().to_json().as_bytes().to_vec();
    fs::write(path, &secret).unwrap();
    secret
}

#[test]
fn in_a_folder_without_a_cluster_nothing_is_removed() {
    for command in [&["mini", "down", "--yes"][..], &["terminate", "--yes"]] {
        let host = Host::released();
        fs::create_dir(host.workspace()).unwrap();
        for name in OF_THE_USER.iter().filter(|name| **name != "constellation-qemu") {
            write(&host, name);
        }
        fs::create_dir(host.workspace().join("constellation-qemu")).unwrap();
        write(&host, "constellation-qemu/notes");
        let output = host.run(command);
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        let said = stdout(&output);
        assert!(
            said.contains("There is no cluster here.") && said.contains(SECRET),
            "{command:?}: {said}"
        );
        assert_eq!(host.files(), OF_THE_USER, "{command:?}");
        assert!(is_untouched(&host, "constellation-qemu/notes"));
    }
}

#[test]
fn what_mini_up_wrote_goes_and_what_the_user_wrote_stays() {
    let host = configured();
    write(&host, "constellation-cluster.log");
    fs::write(host.path("bin/die"), "").unwrap();
    assert!(!host.run(&["mini", "up"]).status.success());
    assert!(host.files().contains(&"timings.json".to_owned()));
    let down = host.run(&["mini", "down", "--yes"]);
    assert!(down.status.success(), "{}", stderr(&down));
    assert_eq!(host.files(), ["constellation-cluster.log", "constellation-conf.yaml"]);
    assert!(is_untouched(&host, "constellation-cluster.log"));
    assert!(
        stdout(&down).contains("constellation-cluster.log: it was not written for this cluster"),
        "{}",
        stdout(&down)
    );
}

#[test]
fn a_file_of_the_user_is_not_replaced() {
    let host = configured();
    write(&host, "timings.json");
    fs::write(host.path("bin/die"), "").unwrap();
    let error = stderr(&host.run(&["apply", "--yes"]));
    assert!(
        error.contains("timings.json was not written for this cluster"),
        "{error}"
    );
    assert!(error.contains("control-plane-0 stopped"), "{error}");
    assert!(is_untouched(&host, "timings.json"));

    write(&host, "constellation-admin.conf");
    let error = stderr(&host.run(&["apply", "--yes"]));
    for part in [
        "constellation-admin.conf was not written for this cluster",
        "constellation-state.yaml knows of no cluster",
        "control-plane-0 (stopped)",
        "Next: restore constellation-state.yaml from a backup",
    ] {
        assert!(error.contains(part), "{error}");
    }
    for command in [&["terminate", "--yes"][..], &["mini", "down", "--yes"]] {
        assert!(host.run(command).status.success());
        assert!(is_untouched(&host, "timings.json") && is_untouched(&host, "constellation-admin.conf"));
    }
    // No cluster can be lost any more.
    let error = stderr(&host.run(&["apply", "--yes"]));
    assert!(error.contains("otherwise move the file"), "{error}");
}

#[test]
fn what_was_changed_since_it_was_written_stays() {
    let host = configured();
    fs::write(host.path("bin/die"), "").unwrap();
    assert!(!host.run(&["mini", "up"]).status.success());
    write(&host, "timings.json");
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.files(), ["constellation-conf.yaml", "timings.json"]);
}

#[test]
fn a_master_secret_that_the_user_brought_stays() {
    let host = configured();
    let secret = foreign_secret(&host);
    host.until(&["mini", "up"], BOOTS).kill();
    let down = host.run(&["mini", "down", "--yes"]);
    assert!(stdout(&down).contains("The master secret is kept"), "{}", stdout(&down));
    assert_eq!(host.files(), ["constellation-conf.yaml", SECRET]);
    assert_eq!(fs::read(host.workspace().join(SECRET)).unwrap(), secret);
}

#[test]
fn a_master_secret_that_apply_made_stays() {
    let host = configured();
    host.until(&["apply", "--yes"], BOOTS).kill();
    let secret = fs::read(host.workspace().join(SECRET)).unwrap();
    // `mini up` on the same cluster does not make it its own.
    host.until(&["mini", "up"], BOOTS).kill();
    let down = host.run(&["mini", "down", "--yes"]);
    assert!(stdout(&down).contains("The master secret is kept"), "{}", stdout(&down));
    assert_eq!(fs::read(host.workspace().join(SECRET)).unwrap(), secret);
}

#[test]
fn a_master_secret_of_an_earlier_cluster_stays() {
    let host = configured();
    host.until(&["mini", "up"], BOOTS).kill();
    assert!(host.run(&["terminate", "--yes"]).status.success());
    host.until(&["mini", "up"], BOOTS).kill();
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.files(), ["constellation-conf.yaml", SECRET]);
}

#[test]
fn without_its_state_a_cluster_is_ended_and_every_file_stays() {
    let host = configured();
    host.until(&["mini", "up"], BOOTS).kill();
    write(&host, "constellation-state.yaml");
    let down = host.run(&["mini", "down", "--yes"]);
    assert_eq!(down.status.code(), Some(1));
    let error = stderr(&down);
    assert!(
        error.contains("constellation-state.yaml") && error.contains("Next: the machines were removed"),
        "{error}"
    );
    assert_eq!(host.processes(), Vec::<i32>::new());
    assert_eq!(
        host.files(),
        ["constellation-conf.yaml", SECRET, "constellation-state.yaml"]
    );
}

/// That build knows what belongs to it.
#[test]
fn a_cluster_of_another_build_is_left_to_that_build() {
    let host = configured();
    host.until(&["mini", "up"], BOOTS).kill();
    let state = host.workspace().join("constellation-state.yaml");
    let ours = fs::read_to_string(&state).unwrap();
    fs::write(&state, ours.replace("version: v3", "version: v2")).unwrap();
    let (files, processes) = (host.files(), host.processes());
    for command in [&["terminate", "--yes"][..], &["mini", "down", "--yes"]] {
        let ended = host.run(command);
        assert_eq!(ended.status.code(), Some(1));
        let error = stderr(&ended);
        assert!(
            error.contains("another build") && error.contains("Next: nothing was done"),
            "{command:?}: {error}"
        );
        assert_eq!(
            (host.files(), host.processes()),
            (files.clone(), processes.clone()),
            "{command:?}"
        );
    }
    fs::remove_file(&state).unwrap();
    assert!(host.run(&["terminate", "--yes"]).status.success());
    assert_eq!(host.processes(), Vec::<i32>::new());
}

/// A folder by the name that the machines' folder has.
#[test]
fn a_folder_of_the_user_is_not_used_for_machines() {
    let host = configured();
    fs::create_dir(host.workspace().join("constellation-qemu")).unwrap();
    write(&host, "constellation-qemu/notes");
    let error = stderr(&host.run(&["mini", "up"]));
    assert!(
        error.contains("constellation-qemu was not created by this program"),
        "{error}"
    );
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert!(is_untouched(&host, "constellation-qemu/notes"));
}
