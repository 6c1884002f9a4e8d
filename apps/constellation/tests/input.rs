//! Bad input to each command gives one clear error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::process::Output;

use support::{COMPONENTS, Host, stderr, stdout};
use test_machines::{SOFTWARE_KEY, SOFTWARE_TPM};

/// What is typed, and what its usage must begin with.
const INCOMPLETE: &[(&[&str], &str)] = &[
    (&[], "Usage: constellation"),
    (&["config"], "Usage: constellation config"),
    (&["mini"], "Usage: constellation mini"),
    (&["mirror"], "Usage: constellation mirror"),
    (&["audit"], "Usage: constellation audit"),
    (&["node"], "Usage: constellation node"),
];

/// What is typed wrongly, and what the error must say: which argument, and what would be right.
const BAD: &[(&[&str], &[&str])] = &[
    (&["launch"], &["launch"]),
    (&["--workspace"], &["--workspace", "value is required"]),
    (&["config", "generate"], &["<PROVIDER>"]),
    (&["node", "remove"], &["<NAME>"]),
    (&["node", "remove", "Worker_0"], &["<NAME>", "Worker_0"]),
    (&["config", "generate", "aws"], &["<PROVIDER>", "aws", "qemu"]),
    (&["config", "generate", "qemu", "more"], &["more"]),
    (
        &["config", "generate", "qemu", "--name", "A"],
        &["--name", "lower-case"],
    ),
    (
        &["config", "generate", "qemu", "--name", "a.b"],
        &["--name", "lower-case"],
    ),
    (&["config", "generate", "qemu", "--name", ""], &["--name", "1 to 37"]),
    (
        &["config", "generate", "qemu", "--name", "a", "--name", "b"],
        &["--name", "multiple times"],
    ),
    (
        &["config", "generate", "qemu", "--image", ""],
        &["--image", "value is required"],
    ),
    (&["config", "generate", "qemu", "--mirror", ""], &["--mirror", "folder"]),
    (
        &["config", "generate", "qemu", "--mirror", "ftp://x"],
        &["--mirror", "http"],
    ),
    (
        &["config", "generate", "qemu", "--mirror", "http://x:y"],
        &["--mirror", "<port>"],
    ),
    (
        &["config", "generate", "qemu", "--kubernetes", ""],
        &["--kubernetes", "v1.35.4"],
    ),
    (
        &["config", "generate", "qemu", "-k", "1.35"],
        &["--kubernetes", "v1.35.4"],
    ),
    (&["config", "generate", "qemu", "--zone", "x"], &["--zone"]),
    (&["apply", "--yess"], &["--yess", "--yes"]),
    (&["apply", "--yes=no"], &["--yes", "'no'"]),
    (&["apply", "now"], &["now"]),
    (&["mini", "sideways"], &["sideways"]),
    (&["mini", "up", "--image", ""], &["--image", "value is required"]),
    (&["mini", "up", "--mirror", "ftp://x"], &["--mirror", "http"]),
    (
        &["mini", "up", "--kubernetes", "v1.35.4-rc.1"],
        &["--kubernetes", "v1.35.4"],
    ),
    (&["mini", "up", "--yes=no"], &["--yes", "'no'"]),
    (&["mini", "up", "--name", "x"], &["--name"]),
    (&["mini", "down", "--force"], &["--force"]),
    (&["mini", "down", "--yes=no"], &["--yes", "'no'"]),
    (&["status", "--output", "json"], &["--output"]),
    (&["status", "worker-0"], &["worker-0"]),
    (&["verify", "--output", "xml"], &["--output", "text", "json"]),
    (&["verify", "--output", ""], &["--output", "text", "json"]),
    (&["verify", "--cluster-id", ""], &["--cluster-id", "64 hex digits"]),
    (&["verify", "--cluster-id", "12"], &["--cluster-id", "64 hex digits"]),
    (&["verify", "worker-0"], &["worker-0"]),
    (&["terminate", "all"], &["all"]),
    (&["terminate", "--yes=no"], &["--yes", "'no'"]),
    (&["mirror", "create"], &["<FOLDER>"]),
    (&["audit", "verify"], &["<FILES>"]),
    (&["audit", "verify", ""], &["<FILES>", "value is required"]),
    (
        &["audit", "verify", "/nonexistent"],
        &["cannot read /nonexistent", "No such file"],
    ),
    (
        &["audit", "verify", "/etc/hostname"],
        &[
            "/etc/hostname was changed, or does not follow",
            "line 1: is not a record",
        ],
    ),
    (
        &["mirror", "create", "", "--from", "x"],
        &["<FOLDER>", "value is required"],
    ),
    (&["mirror", "create", "somewhere"], &["--from"]),
    (&["mirror", "create", "somewhere", "--from", ""], &["--from", "folder"]),
    (
        &["mirror", "create", "somewhere", "--from", "ftp://x"],
        &["--from", "http"],
    ),
    (
        &["mirror", "create", "somewhere", "--from", "/nonexistent"],
        &["--from", "/nonexistent/components.json"],
    ),
    (
        &["mirror", "create", "somewhere", "--list", ""],
        &["--list", "value is required"],
    ),
    (
        &["mirror", "create", "somewhere", "--list", "/nonexistent"],
        &["--list", "/nonexistent"],
    ),
    (&["version", "--short"], &["--short"]),
    (&["completion"], &["<SHELL>"]),
    (&["completion", "tcsh"], &["<SHELL>", "tcsh", "bash"]),
];

/// One error, which says all of this, and no more than that.
fn check(output: &Output, named: &[&str], what: &str) {
    let error = stderr(output);
    assert!(!output.status.success(), "{what} was taken");
    assert!(named.iter().all(|name| error.contains(name)), "{what}: {error}");
    let errors = error.lines().filter(|line| line.to_lowercase().starts_with("error:"));
    assert_eq!(errors.count(), 1, "{what}: {error}");
    assert!(!error.contains("panicked"), "{what}: {error}");
    assert_eq!(stdout(output), "", "{what}");
}

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    let host = Host::new();
    std::fs::create_dir(host.workspace()).unwrap();
    for (arguments, named) in BAD {
        check(&host.run(arguments), named, &format!("{arguments:?}"));
        assert_eq!(host.files(), Vec::<String>::new(), "{arguments:?} left something");
    }
}

#[test]
fn an_incomplete_command_shows_its_usage() {
    let host = Host::new();
    for (arguments, usage) in INCOMPLETE {
        let output = host.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(usage), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_workspace_that_is_none_is_named() {
    let host = Host::new();
    for (workspace, command, named) in [
        ("", "status", &["--workspace", "value is required"][..]),
        ("nowhere", "status", &["workspace nowhere", "is not a folder"]),
        (
            "image/node.img",
            "status",
            &["workspace image/node.img", "is not a folder"],
        ),
        ("image/node.img", "mini up", &["cannot create image/node.img"]),
        (
            "image/node.img/below",
            "mini up",
            &["cannot create image/node.img/below"],
        ),
    ] {
        let mut program = host.bare_command();
        program.current_dir(host.path(""));
        program.args(["--workspace", workspace]).args(command.split(' '));
        check(
            &program.output().unwrap(),
            named,
            &format!("{command} in {workspace:?}"),
        );
    }
}

#[test]
fn a_list_that_is_none_is_named() {
    let host = Host::new();
    let list = host.path("list.json");
    let component = r#"{"url":"a","hash":"sha256:00","install_path":"/a"}"#;
    for (content, reason) in [
        (String::new(), "the document is empty"),
        ("{}".to_owned(), "version"),
        (COMPONENTS.replace("\"v1\"", "\"v2\""), "v2"),
        (COMPONENTS.replace("v1.35.4", "1.35"), "Kubernetes release"),
        (COMPONENTS.replace("[]", &format!("[{component}]")), "sha256:"),
        (COMPONENTS.replace("[]", "[], \"more\": 1"), "more"),
    ] {
        std::fs::write(&list, &content).unwrap();
        let output = host.run(&["mirror", "create", "somewhere", "--list", list.to_str().unwrap()]);
        check(&output, &["--list", "list.json", reason], &content);
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    for (file, content, command, named) in [
        (
            "image/reference-values.json",
            "{}",
            "apply -y",
            &["reference-values.json", "version"][..],
        ),
        (
            "image/reference-values.json",
            "",
            "apply -y",
            &["reference-values.json", "the document is empty"],
        ),
        (
            "mirror/components.json",
            "{}",
            "apply -y",
            &["components.json", "version"],
        ),
        (
            "workspace/constellation-conf.yaml",
            "version: v4",
            "apply -y",
            &["constellation-conf.yaml", "version"],
        ),
        (
            "workspace/constellation-state.yaml",
            "version: v1",
            "status",
            &["constellation-state.yaml", "version"],
        ),
        (
            "workspace/constellation-state.yaml",
            "",
            "apply -y",
            &["constellation-state.yaml", "version"],
        ),
    ] {
        let host = Host::new();
        host.configure();
        host.change_config("kubernetesComponentsDigest:", "# kubernetesComponentsDigest:");
        std::fs::write(host.path(file), content).unwrap();
        let arguments: Vec<_> = command.split(' ').collect();
        check(&host.run(&arguments), named, &format!("{file}: {content:?}"));
    }
}

#[test]
fn a_variant_that_does_not_fit_is_refused_by_name() {
    let (released, other) = (SOFTWARE_TPM.variant(), SOFTWARE_KEY.variant());
    let host = Host::new();
    host.configure();
    host.change_config(
        &format!("attestationVariant: {released}"),
        &format!("attestationVariant: {other}"),
    );
    let mismatch = format!("are for variant {released}, expected {other}");
    let apply = || host.run(&["apply", "-y"]);
    check(
        &apply(),
        &["reference-values.json", &mismatch],
        "document of another variant",
    );
    // Document and configuration agree, but no release has a verifier for a variant of tests.
    std::fs::write(host.path("image/reference-values.json"), SOFTWARE_KEY.image().to_json()).unwrap();
    let unsupported = format!("cannot appraise {other}; it can appraise {released}");
    check(&apply(), &["reference-values.json", &unsupported], "variant of tests");
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
    host.change_config("kubernetesComponentsDigest:", "# kubernetesComponentsDigest:");
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
fn every_shell_gets_its_completion() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&host.run(&["completion", shell]));
        assert!(script.contains("terminate"), "{shell}");
    }
}
