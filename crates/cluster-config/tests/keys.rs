//! Bad input to each key of a configuration gives one clear error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::path::Path;

use cluster_config::{ClusterConfig, ExampleOptions, ParseConfigError, example};
use cluster_types::Variant;

/// As in the example.
const VARIANT: &str = Variant::ALL[0].as_str();

fn parse(text: &str) -> Result<ClusterConfig, ParseConfigError> {
    ClusterConfig::parse(text, Path::new("/workspace"))
}

/// The example with one part replaced.
fn with(part: &str, replacement: &str) -> String {
    let good = example(&ExampleOptions::default());
    assert_eq!(good.matches(part).count(), 1, "{part:?} is not once in the example");
    good.replace(part, replacement)
}

/// Every problem of a configuration, as `path: message`.
fn problems(text: &str) -> Vec<String> {
    match parse(text).expect_err(text) {
        ParseConfigError::Values(problems) => problems.all().iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    }
}

/// Replaces one part of the example and expects one problem, on one line, that names the key and says why.
fn check(part: &str, replacement: &str, path: &str, reason: &str) {
    let problems = problems(&with(part, replacement));
    let [problem] = problems.as_slice() else {
        panic!("{replacement:?}: {problems:#?}")
    };
    assert!(problem.starts_with(&format!("{path}: ")), "{replacement:?}: {problem}");
    assert!(problem.contains(reason), "{replacement:?}: {problem}");
    assert_eq!(problem.lines().count(), 1, "{problem}");
}

#[test]
fn values_that_cannot_be() {
    for (part, replacement, path, reason) in [
        ("version: v5", "version: v4", "version", "config generate"),
        ("version: v5", "version: \"\"", "version", "expected \"v5\""),
        ("name: mini", "name: Mini", "name", "lower-case"),
        ("name: mini", "name: a.b", "name", "lower-case"),
        ("name: mini", "name: -a", "name", "starting"),
        ("name: mini", "name: \"\"", "name", "1 to 37"),
        (
            "name: mini",
            "name: a23456789-123456789-123456789-12345678",
            "name",
            "1 to 37",
        ),
        ("image: image", "image: \"\"", "image", "node.img"),
        (VARIANT, "dummy", "attestationVariant", "such as"),
        (VARIANT, "\"\"", "attestationVariant", "such as"),
        ("v1.35.4", "v1.35", "kubernetesVersion", "v1.35.4"),
        ("v1.35.4", "1.35.4", "kubernetesVersion", "v1.35.4"),
        ("v1.35.4", "v1.35.4-rc.1", "kubernetesVersion", "v1.35.4"),
        ("v1.35.4", "\"\"", "kubernetesVersion", "v1.35.4"),
        (
            "# kubernetesComponentsDigest: sha256:...",
            "kubernetesComponentsDigest: sha256:00",
            "kubernetesComponentsDigest",
            "64 lower-case hex digits",
        ),
        (
            "# kubernetesComponentsDigest: sha256:...",
            "kubernetesComponentsDigest: \"\"",
            "kubernetesComponentsDigest",
            "64 lower-case hex digits",
        ),
        ("mirror: mirror", "mirror: ftp://mirror", "mirror", "http"),
        ("mirror: mirror", "mirror: http://", "mirror", "http"),
        ("mirror: mirror", "mirror: http://host:99999", "mirror", "port"),
        ("mirror: mirror", "mirror: http://a:b@host", "mirror", "http"),
        ("mirror: mirror", "mirror: \"\"", "mirror", "folder"),
        ("10.96.0.0/12", "10.96.0.1/12", "serviceCIDR", "10.96.0.0/12"),
        ("10.96.0.0/12", "10.96.0.0", "serviceCIDR", "10.96.0.0/12"),
        ("10.96.0.0/12", "fd00::/108", "serviceCIDR", "IPv4"),
        ("10.96.0.0/12", "\"\"", "serviceCIDR", "IPv4"),
        ("10.96.0.0/12", "10.0.0.0/8", "serviceCIDR", "outside 10.96.0.0/12"),
        ("10.96.0.0/12", "10.96.0.0/29", "serviceCIDR", "at most 28 bits"),
        ("10.96.0.0/12", "10.128.0.0/16", "serviceCIDR", "outside 10.96.0.0/12"),
        (
            "acceleration: auto",
            "acceleration: turbo",
            "provider.qemu.acceleration",
            "auto, kvm or software",
        ),
        (
            "# firmware: /usr/share/OVMF",
            "firmware: \"\"",
            "provider.qemu.firmware",
            "folder",
        ),
    ] {
        check(part, replacement, path, reason);
    }
}

#[test]
fn values_of_groups_that_cannot_be() {
    for (part, replacement, path, reason) in [
        (
            "role: control-plane",
            "role: master",
            "control_plane_default.role",
            "control-plane or worker",
        ),
        (
            "role: control-plane",
            "role: worker",
            "control_plane_default.role",
            "role is control-plane",
        ),
        (
            "role: worker",
            "role: control-plane",
            "worker_default.role",
            "role is worker",
        ),
        (
            "initialCount: 1 # control",
            "initialCount: 0 #",
            "control_plane_default.initialCount",
            "expected 1",
        ),
        (
            "initialCount: 1 # control",
            "initialCount: 2 #",
            "control_plane_default.initialCount",
            "expected 1",
        ),
        (
            "initialCount: 1 # workers",
            "initialCount: 101",
            "worker_default.initialCount",
            "0 to 100",
        ),
        (
            "initialCount: 1 # workers",
            "initialCount: 4294967297",
            "worker_default.initialCount",
            "0 to 100",
        ),
        (
            "vcpus: 2 # control",
            "vcpus: 1 #",
            "control_plane_default.vcpus",
            "2 to 64",
        ),
        ("vcpus: 2 # workers", "vcpus: 0", "worker_default.vcpus", "1 to 64"),
        ("vcpus: 2 # workers", "vcpus: 65", "worker_default.vcpus", "1 to 64"),
        (
            "memoryMiB: 3072",
            "memoryMiB: 2047",
            "control_plane_default.memoryMiB",
            "2048 to 1048576",
        ),
        (
            "memoryMiB: 2048",
            "memoryMiB: 512",
            "worker_default.memoryMiB",
            "1024 to 1048576",
        ),
        (
            "memoryMiB: 2048",
            "memoryMiB: 1048577",
            "worker_default.memoryMiB",
            "1024 to 1048576",
        ),
        (
            "stateDiskSizeGB: 20 # workers",
            "stateDiskSizeGB: 7",
            "worker_default.stateDiskSizeGB",
            "8 to 16384",
        ),
        (
            "stateDiskSizeGB: 20 # control",
            "stateDiskSizeGB: 16385 #",
            "control_plane_default.stateDiskSizeGB",
            "8 to 16384",
        ),
    ] {
        check(part, replacement, &format!("nodeGroups.{path}"), reason);
    }
}

#[test]
fn values_of_another_kind() {
    for (part, replacement, path, reason) in [
        (
            "version: v5",
            "version: [v5]",
            "version",
            "is a list, expected a string",
        ),
        ("name: mini", "name: [mini]", "name", "is a list, expected a string"),
        ("name: mini", "name: 5", "name", "is 5, expected a string"),
        ("name: mini", "name: true", "name", "is true, expected a string"),
        ("name: mini", "name:", "name", "is empty, expected a string"),
        (
            "image: image",
            "image: {a: b}",
            "image",
            "is a section, expected a string",
        ),
        (VARIANT, "1", "attestationVariant", "is 1, expected a string"),
        ("v1.35.4", "1.35", "kubernetesVersion", "is 1.35, expected a string"),
        ("mirror: mirror", "mirror: []", "mirror", "is a list, expected a string"),
        ("10.96.0.0/12", "10", "serviceCIDR", "is 10, expected a string"),
        (
            "role: worker",
            "role: 1",
            "nodeGroups.worker_default.role",
            "is 1, expected a string",
        ),
        (
            "initialCount: 1 # workers",
            "initialCount: -1",
            "nodeGroups.worker_default.initialCount",
            "is -1, expected a whole number",
        ),
        (
            "initialCount: 1 # workers",
            "initialCount: many",
            "nodeGroups.worker_default.initialCount",
            "is \"many\", expected a whole number",
        ),
        (
            "initialCount: 1 # workers",
            "initialCount:",
            "nodeGroups.worker_default.initialCount",
            "is empty, expected a whole number",
        ),
        (
            "vcpus: 2 # workers",
            "vcpus: 1.5",
            "nodeGroups.worker_default.vcpus",
            "is 1.5, expected a whole number",
        ),
        (
            "memoryMiB: 2048",
            "memoryMiB: 2G",
            "nodeGroups.worker_default.memoryMiB",
            "is \"2G\", expected a whole number",
        ),
        (
            "stateDiskSizeGB: 20 # workers",
            "stateDiskSizeGB: [20]",
            "nodeGroups.worker_default.stateDiskSizeGB",
            "is a list, expected a whole number",
        ),
        (
            "    acceleration: auto",
            "    acceleration: 1",
            "provider.qemu.acceleration",
            "is 1, expected a string",
        ),
        (
            "# firmware: /usr/share/OVMF",
            "firmware: [a]",
            "provider.qemu.firmware",
            "is a list, expected a string",
        ),
        (
            "flushes: true",
            "flushes: 1",
            "provider.qemu.flushes",
            "is 1, expected true or false",
        ),
    ] {
        check(part, replacement, path, reason);
    }
}

#[test]
fn sections_of_another_kind() {
    let good = example(&ExampleOptions::default());
    let (top, groups) = good.split_once("nodeGroups:").unwrap();
    let (groups, provider) = groups.split_once("provider:").unwrap();
    let (planes, _) = groups.split_once("  worker_default:").unwrap();
    for (text, problem) in [
        (
            format!("{top}nodeGroups: none\nprovider:{provider}"),
            "nodeGroups: is \"none\", expected groups of nodes by name",
        ),
        (
            format!("{top}nodeGroups:{planes}  worker_default: 3\nprovider:{provider}"),
            "nodeGroups.worker_default: is 3, expected the keys of a group: role, initialCount and others",
        ),
        (
            format!("{top}nodeGroups:{groups}provider: {{}}\n"),
            "provider.qemu: is missing, expected the keys of this provider, or {} for the defaults",
        ),
        (
            format!("{top}nodeGroups:{groups}provider:\n  qemu:\n"),
            "provider.qemu: is empty, expected the keys of this provider, or {} for the defaults",
        ),
        (
            format!("{top}nodeGroups:{groups}provider: qemu\n"),
            "provider: is \"qemu\", expected the section of one provider: qemu",
        ),
    ] {
        assert_eq!(problems(&text), [problem]);
    }
}

#[test]
fn keys_that_are_missing() {
    for (part, path, reason) in [
        ("version: v5", "version", "expected \"v5\""),
        ("name: mini", "name", "is missing, expected a string"),
        ("image: image", "image", "is missing, expected a string"),
        (
            &format!("attestationVariant: {VARIANT}"),
            "attestationVariant",
            "is missing, expected a string",
        ),
        (
            "kubernetesVersion: v1.35.4",
            "kubernetesVersion",
            "is missing, expected a string",
        ),
        ("mirror: mirror", "mirror", "is missing, expected a string"),
        (
            "role: worker",
            "nodeGroups.worker_default.role",
            "is missing, expected a string",
        ),
        (
            "initialCount: 1 # workers",
            "nodeGroups.worker_default.initialCount",
            "is missing, expected a whole number",
        ),
    ] {
        check(part, "", path, reason);
    }
}

#[test]
fn keys_that_are_not_known() {
    for (part, added, path, reason) in [
        ("name: mini", "naem: mini", "naem", "version, name, image"),
        (
            "role: worker",
            "    rolle: worker",
            "nodeGroups.worker_default.rolle",
            "role, initialCount",
        ),
        ("provider:", "  aws: {}", "provider.aws", "expected qemu"),
        (
            "acceleration: auto",
            "    nested: 1",
            "provider.qemu.nested",
            "acceleration, firmware or flushes",
        ),
    ] {
        check(part, &format!("{part}\n{added}"), path, reason);
    }
    // A mistyped key is both unknown and missing.
    assert_eq!(
        problems(&with("mirror: mirror", "miror: mirror")),
        [
            "mirror: is missing, expected a string (put numbers and true/false in quotes)",
            "miror: is an unknown key, expected version, name, image, attestationVariant, kubernetesVersion, \
             kubernetesComponentsDigest, mirror, serviceCIDR, nodeGroups or provider",
        ]
    );
}

#[test]
fn groups_that_cannot_be() {
    for (name, path) in [
        ("Workers", "nodeGroups.Workers"),
        ("\"\"", "nodeGroups."),
        ("\"a\\nb\"", "nodeGroups.a\\nb"),
    ] {
        let group = format!("nodeGroups:\n  {name}: {{role: worker, initialCount: 1}}");
        check("nodeGroups:", &group, path, "is not a valid group name");
    }
    assert_eq!(
        problems(&with("  control_plane_default:", "  control_planes:")),
        ["nodeGroups.control_plane_default: is missing: every cluster has this group, with role control-plane"]
    );
    let more = "nodeGroups:\n  more: {role: worker, initialCount: 100}";
    check("nodeGroups:", more, "nodeGroups", "101 nodes of role worker");
}

/// Where a part of the example is, from 1.
fn line_of(part: &str) -> usize {
    let good = example(&ExampleOptions::default());
    let (before, _) = good.split_once(part).unwrap();
    before.lines().count().max(1) + usize::from(before.ends_with('\n'))
}

#[test]
fn keys_given_twice() {
    for (part, twice, key, line) in [
        ("name: mini", "name: mini\nname: other", "name", 1),
        (
            "nodeGroups:",
            "nodeGroups:\n  worker_default: {role: worker, initialCount: 1}",
            "worker_default",
            0,
        ),
        ("role: worker", "role: worker\n    role: worker", "role", 1),
        (
            "acceleration: auto",
            "acceleration: auto\n    acceleration: auto",
            "acceleration",
            1,
        ),
    ] {
        let error = parse(&with(part, twice)).expect_err(twice).to_string();
        assert!(error.ends_with(&format!("{key}: is given twice: keep one")), "{error}");
        // Of the group, the second one is the one of the example.
        let line = if line == 0 {
            line_of("worker_default:")
        } else {
            line_of(part)
        } + 1;
        assert!(error.starts_with(&format!("line {line}, ")), "{line}: {error}");
    }
}

#[test]
fn texts_that_are_no_configuration() {
    for (text, reason) in [
        ("", "version"),
        ("- a", "expected a section of keys with values"),
        ("name: [", "line 1: "),
        ("a: b: c", "line 1: not YAML at column "),
        ("version: v5\n\tname: x", "not YAML at column "),
        ("version: v5\n---\nversion: v5", "a second document begins here"),
        ("version: *v5", "`*` starts an unknown alias"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(reason), "{text:?}: {error}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let text = with("name: mini", "name: A")
        .replace("image: image", "")
        .replace("mirror: mirror", "mirror: [mirror]")
        .replace("role: control-plane", "role: master")
        .replace("vcpus: 2 # control", "vcpus: 0 #")
        .replace("memoryMiB: 2048", "memoryMiB: 2G\n    memory: 2048")
        .replace("acceleration: auto", "acceleration: turbo");
    let paths: Vec<String> = problems(&text)
        .iter()
        .map(|problem| problem.split(": ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        paths,
        [
            "name",
            "image",
            "mirror",
            "nodeGroups.control_plane_default.role",
            "nodeGroups.control_plane_default.vcpus",
            "nodeGroups.worker_default.memoryMiB",
            "nodeGroups.worker_default.memory",
            "provider.qemu.acceleration",
        ]
    );
}
