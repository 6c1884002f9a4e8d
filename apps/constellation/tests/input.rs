//! Bad input to each command gives one clear error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use support::{Host, stderr, stdout};

/// What is typed wrongly, and what the error must name.
const BAD: &[(&[&str], &[&str])] = &[
    (&[], &["Usage: constellation"]),
    (&["launch"], &["launch"]),
    (&["--workspace"], &["--workspace"]),
    (&["config"], &["Usage: constellation config"]),
    (&["config", "generate"], &["<PROVIDER>"]),
    (&["config", "generate", "aws"], &["aws", "qemu"]),
    (
        &["config", "generate", "qemu", "--kubernetes", "1.35"],
        &["--kubernetes", "v1.35.4"],
    ),
    (&["config", "generate", "qemu", "--name", "A"], &["name", "lower-case"]),
    (&["config", "generate", "qemu", "--image", ""], &["--image"]),
    (
        &["config", "generate", "qemu", "--mirror", "ftp://x"],
        &["mirror", "http"],
    ),
    (&["config", "generate", "qemu", "--zone", "x"], &["--zone"]),
    (&["apply", "--yess"], &["--yess", "--yes"]),
    (&["apply", "now"], &["now"]),
    (&["mini"], &["Usage: constellation mini"]),
    (&["mini", "sideways"], &["sideways"]),
    (&["mini", "up", "--kubernetes", "v1.35.4-rc.1"], &["--kubernetes"]),
    (&["mini", "up", "--mirror", "ftp://x"], &["mirror", "http"]),
    (&["mini", "down", "--force"], &["--force"]),
    (&["status", "--output", "json"], &["--output"]),
    (&["verify", "--output", "xml"], &["--output", "text", "json"]),
    (&["verify", "--cluster-id", "12"], &["--cluster-id", "64 hex digits"]),
    (&["terminate", "all"], &["all"]),
    (&["mirror", "create"], &["<FOLDER>"]),
    (&["mirror", "create", "somewhere"], &["--from"]),
    (
        &["mirror", "create", "somewhere", "--from", "/nonexistent"],
        &["/nonexistent/components.json"],
    ),
    (
        &["mirror", "create", "somewhere", "--list", "/nonexistent"],
        &["/nonexistent"],
    ),
    (&["version", "--short"], &["--short"]),
    (&["completion", "tcsh"], &["tcsh", "bash"]),
];

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    let host = Host::new();
    std::fs::create_dir(host.workspace()).unwrap();
    for (arguments, named) in BAD {
        let output = host.run(arguments);
        let error = stderr(&output);
        assert!(!output.status.success(), "{arguments:?} was taken");
        assert!(named.iter().all(|name| error.contains(name)), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");
        assert_eq!(host.files(), Vec::<String>::new(), "{arguments:?} left something");
    }
}

#[test]
fn commands_without_a_cluster_say_what_to_do() {
    let host = Host::new();
    for command in [&["status"][..], &["verify"], &["apply"], &["terminate", "-y"]] {
        let error = stderr(&host.run(command));
        assert!(error.contains("is not a folder"), "{command:?}: {error}");
    }
    std::fs::create_dir(host.workspace()).unwrap();
    assert!(stderr(&host.run(&["apply", "-y"])).contains("config generate"));
    assert!(stdout(&host.run(&["status"])).contains("mini up"));
    assert!(stdout(&host.run(&["mini", "down"])).contains("no cluster"));
    host.configure();
    assert!(stderr(&host.run(&["verify"])).contains("mini up"));
}

#[test]
fn a_bad_configuration_is_told_key_by_key() {
    let host = Host::new();
    host.configure();
    let path = host.workspace().join("constellation-conf.yaml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        config
            .replace("name: mini", "name: A")
            .replace("vcpus: 2 # control", "vcpus: 1 # control"),
    )
    .unwrap();
    let error = stderr(&host.run(&["apply", "-y"]));
    for part in [
        "constellation-conf.yaml",
        "name: \"A\"",
        "nodeGroups.control_plane_default.vcpus: is 1",
        "Next: correct",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_mirror_of_another_version_is_refused() {
    let host = Host::new();
    host.configure();
    let list = r#"{"version":"v1","kubernetes_version":"v1.34.2","components":[]}"#;
    std::fs::write(host.path("mirror/components.json"), list).unwrap();
    let error = stderr(&host.run(&["apply", "-y"]));
    assert!(error.contains("v1.34.2") && error.contains("v1.35.4"), "{error}");
}

#[test]
fn questions_are_not_answered_without_a_terminal() {
    let host = Host::new();
    host.configure();
    let error = stderr(&host.run(&["apply"]));
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(host.files(), ["constellation-conf.yaml"]);
}

#[test]
fn what_the_machine_lacks_is_told_at_once() {
    let host = Host::new();
    host.configure();
    std::fs::remove_file(host.path("firmware/OVMF_VARS_4M.fd")).unwrap();
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
    let host = Host::new();
    host.configure();
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
fn every_shell_gets_its_completion() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&host.run(&["completion", shell]));
        assert!(script.contains("terminate"), "{shell}");
    }
}
