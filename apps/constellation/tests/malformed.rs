//! Every file that an operator may edit: what is said of mistakes in it. Key, line and what to do are ours, not those of a library.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;

use support::{COMPONENTS, Host, stderr, stdout};

const CONFIG: &str = "workspace/constellation-conf.yaml";
const STATE: &str = "workspace/constellation-state.yaml";
const SECRET: &str = "workspace/constellation-mastersecret.json";
const KUBECONFIG: &str = "workspace/constellation-admin.conf";
const VALUES: &str = "image/reference-values.json";
const LIST: &str = "mirror/components.json";
const MACHINES: &str = "workspace/constellation-qemu/cluster.json";

/// Words of libraries that say nothing to an operator.
const FOREIGN: [&str; 14] = [
    "DuplicateKeyPolicy",
    "Options",
    "serde",
    "struct ",
    "invalid type",
    "invalid value",
    "missing field",
    "unknown field",
    "unknown variant",
    "mapping",
    "EOF",
    "u32",
    "at line ",
    "untagged",
];

/// A file, a command that reads it, and its text with one part replaced; an empty part replaces all of it.
const CASES: &[(&str, &str, &str, &str)] = &[
    (CONFIG, "apply -y", "", ""),
    (CONFIG, "apply -y", "", "\u{0}\u{1}"),
    (CONFIG, "apply -y", "", "- name: mini"),
    (CONFIG, "apply -y", "name: mini", "name: mini\nname: other"),
    (CONFIG, "apply -y", "name: mini", "name: [mini"),
    (CONFIG, "apply -y", "name: mini", "name: mini: mini"),
    (CONFIG, "apply -y", "name: mini", "\tname: mini"),
    (CONFIG, "apply -y", "name: mini", " name: mini"),
    (CONFIG, "apply -y", "name: mini", "name: *mini"),
    (CONFIG, "apply -y", "name: mini", "? [name]\n: mini"),
    (CONFIG, "apply -y", "name: mini", "name: mini\n---\nname: other"),
    (CONFIG, "apply -y", "name: mini", "<<: mini"),
    (CONFIG, "apply -y", "version: v5", "version: 5"),
    (CONFIG, "apply -y", "version: v5", "version: v4"),
    (CONFIG, "apply -y", "vcpus: 2 # workers", "vcpus: two"),
    (STATE, "status", "", ""),
    (STATE, "status", "", "[]"),
    (STATE, "status", "version: v3", "version: [v3]"),
    (STATE, "status", "version: v3", "version: v2"),
    (STATE, "status", "init: not-started", "init: maybe"),
    (STATE, "status", "init: not-started", "init: not-started\ninit: done"),
    (STATE, "status", "init: not-started", "inti: not-started"),
    (STATE, "status", "init: not-started", ""),
    (STATE, "status", "initSecret: ", "initSecret: x"),
    (STATE, "status", "initSecret: ", "initSecret: []\nx: "),
    (STATE, "status", "init: not-started", "init: not-started\npolicy: $"),
    (STATE, "status", "init: not-started", "init: not-started\npolicy: AAAA"),
    (STATE, "status", "members: []", "members: worker-0"),
    (STATE, "status", "members: []", "members: [Worker_0]"),
    (SECRET, "apply -y", "", ""),
    (SECRET, "apply -y", "", "{\"key\": \"s3cret\""),
    (
        SECRET,
        "apply -y",
        "",
        "{\"key\": \"czNjcmV0\", \"salt\": \"czNjcmV0\"}",
    ),
    (KUBECONFIG, "status", "", "clusters: ["),
    (KUBECONFIG, "status", "", "clusters: 5"),
    (KUBECONFIG, "status", "", "{}"),
    (VALUES, "apply -y", "", ""),
    (VALUES, "apply -y", "\n}\n", ""),
    (VALUES, "apply -y", "\"version\": 2,", "\"version\": 2"),
    (VALUES, "apply -y", "\"version\": 2", "\"version\": 1"),
    (VALUES, "apply -y", "\"version\": 2", "\"version\": \"2\""),
    (VALUES, "apply -y", "\"version\": 2,", ""),
    (
        VALUES,
        "apply -y",
        "\"variant\": \"qemu-vtpm\"",
        "\"variant\": \"abacus\"",
    ),
    (VALUES, "apply -y", "\"image\"", "\"imgae\""),
    (VALUES, "apply -y", "\"pcrs\": {", "\"pcr\": {"),
    (VALUES, "apply -y", "\"expected\": \"0", "\"expected\": \""),
    (
        VALUES,
        "apply -y",
        "\"enforcement\": \"required\"",
        "\"enforcement\": \"maybe\"",
    ),
    (VALUES, "apply -y", "\"15\": {", "\"99\": {"),
    (VALUES, "apply -y", "\"15\": {", "\"11\": {"),
    (LIST, "mirror create x --list LIST", "", ""),
    (LIST, "mirror create x --list LIST", "", "<html>"),
    (LIST, "mirror create x --list LIST", "\"v1\"", "\"v2\""),
    (LIST, "mirror create x --list LIST", "\"v1\"", "1"),
    (LIST, "mirror create x --list LIST", "v1.35.4", "1.35"),
    (
        LIST,
        "mirror create x --list LIST",
        "[]",
        "[{\"url\":\"a\",\"hash\":\"sha256:00\",\"install_path\":\"/a\"}]",
    ),
    (LIST, "mirror create x --list LIST", "[]", "{}"),
    (LIST, "mirror create x --list LIST", "[]", "[], \"more\": 1"),
    (MACHINES, "status", "", "{"),
    (MACHINES, "terminate -y", "", "{"),
];

/// The text of a file before somebody edited it.
fn good(host: &Host, file: &str) -> String {
    match file {
        LIST => COMPONENTS.to_owned(),
        STATE => cluster_config::ClusterState::new().to_yaml().to_string(),
        CONFIG | VALUES => fs::read_to_string(host.path(file)).unwrap(),
        _ => String::new(),
    }
}

/// What a command says, without what differs between machines and runs.
fn said(host: &Host, command: &str) -> String {
    let list = host.path(LIST);
    let arguments: Vec<_> = command.split(' ').collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| {
            if *argument == "LIST" {
                list.to_str().unwrap()
            } else {
                argument
            }
        })
        .collect();
    let output = host.run(&arguments);
    let said = stdout(&output) + &stderr(&output);
    said.replace(host.path("").to_str().unwrap().trim_end_matches('/'), "HOST")
}

#[test]
fn mistakes_are_told_by_key_and_line() {
    let mut messages = String::new();
    for (file, command, part, replacement) in CASES {
        let host = Host::released();
        host.configure();
        if *file == KUBECONFIG || *file == MACHINES {
            fs::write(host.path(STATE), good(&host, STATE)).unwrap();
            fs::create_dir(host.path("workspace/constellation-qemu")).unwrap();
            fs::write(
                host.path(MACHINES),
                r#"{"uid":"","private_network_port":1,"metadata_port":1,"init_secret_hash":"","mirror":null,"nodes":{}}"#,
            )
            .unwrap();
        }
        let good = good(&host, file);
        let text = if part.is_empty() {
            (*replacement).to_owned()
        } else {
            assert!(good.contains(part), "{file} has no {part:?}");
            good.replacen(part, replacement, 1)
        };
        fs::write(host.path(file), text).unwrap();
        let said = said(&host, command);
        for word in FOREIGN {
            assert!(!said.contains(word), "{file}: {part:?} -> {replacement:?}: {said}");
        }
        assert!(!said.contains("s3cret") && !said.contains("czNjcmV0"), "{said}");
        messages += &format!("# {file}: {part:?} -> {replacement:?}\n{said}\n");
    }
    insta::assert_snapshot!(messages);
}
