//! A workspace that another user made, with sudo for instance: the error says whose it is and what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use support::{Host, stderr};

/// The user of a test that is run by root: `nobody`.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// What a user says who is not root, and whom permissions therefore concern.
fn said(host: &Host, arguments: &[&str]) -> String {
    said_in(host, &host.workspace(), arguments)
}

fn said_in(host: &Host, workspace: &Path, arguments: &[&str]) -> String {
    let program = host.path("constellation");
    // The build folder may be one that only its owner can read. Another process copies: what another test's child inherits of an
    // open file would keep it from being run.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_constellation"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    mode(&program, 0o755);
    mode(&host.path(""), 0o755);
    let mut command = Command::new(program);
    command.arg("--workspace").arg(workspace).args(arguments);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    stderr(&output)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Whose it is and what to do, as told to the user of the test.
fn advice() -> [&'static str; 2] {
    if is_root() {
        ["belongs to root", "sudo"]
    } else {
        ["has the mode", "chmod u+rwX"]
    }
}

fn check(host: &Host, arguments: &[&str], path: &Path) {
    check_error(&said(host, arguments), arguments, path);
}

fn check_error(error: &str, arguments: &[&str], path: &Path) {
    let path = path.to_str().unwrap();
    for part in ["permission denied", path, advice()[0], advice()[1]] {
        assert!(error.contains(part), "{arguments:?}: no {part:?} in {error}");
    }
}

#[test]
fn a_folder_that_may_not_be_used_is_not_called_missing() {
    let host = Host::new();
    host.configure();
    for locked in [host.workspace(), host.path("workspace/constellation-qemu")] {
        fs::create_dir_all(&locked).unwrap();
        mode(&locked, 0);
        for command in [&["status"][..], &["terminate", "--yes"], &["mini", "down", "--yes"]] {
            check(&host, command, &locked);
        }
        mode(&locked, 0o755);
    }
}

#[test]
fn a_file_that_may_not_be_read_and_a_folder_that_may_not_be_written_to_are_named() {
    let host = Host::new();
    host.configure();
    let config = host.workspace().join("constellation-conf.yaml");
    mode(&config, 0);
    check(&host, &["apply", "--yes"], &config);
    mode(&config, 0o644);
    fs::remove_file(&config).unwrap();
    mode(&host.workspace(), 0o555);
    let (image, mirror) = (host.path("image"), host.path("mirror"));
    let sources = ["--image", image.to_str().unwrap(), "--mirror", mirror.to_str().unwrap()];
    check(
        &host,
        &[&["config", "generate", "qemu"][..], &sources].concat(),
        &host.workspace(),
    );
    check(&host, &[&["mini", "up"][..], &sources].concat(), &host.workspace());
    mode(&host.workspace(), 0o755);
}

#[test]
fn an_image_and_a_mirror_that_may_not_be_read_are_named() {
    let host = Host::new();
    host.configure();
    if is_root() {
        let config = host.workspace().join("constellation-conf.yaml");
        for path in [host.workspace(), config] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    for (locked, usable) in [("image", 0o755), ("mirror", 0o755), ("image/node.img", 0o644)] {
        let locked = host.path(locked);
        mode(&locked, 0);
        check(&host, &["apply", "--yes"], &locked);
        mode(&locked, usable);
    }
}

#[test]
fn a_folder_that_may_not_be_created_or_filled_is_named() {
    let host = Host::new();
    let locked = host.path("locked");
    fs::create_dir(&locked).unwrap();
    mode(&locked, 0o555);
    let from = host.path("mirror");
    // The mirror has no files: in a folder that is there, only the list is written.
    for folder in [locked.join("mirror"), locked.clone()] {
        let arguments = [
            "mirror",
            "create",
            folder.to_str().unwrap(),
            "--from",
            from.to_str().unwrap(),
        ];
        check(&host, &arguments, &locked);
    }
    let error = said_in(&host, &locked.join("workspace"), &["mini", "up"]);
    check_error(&error, &["mini", "up"], &locked);
    mode(&locked, 0o755);
}

/// A process that the user of the test may not end.
struct Foreign {
    child: Option<Child>,
    pid: u32,
}

impl Foreign {
    fn find() -> Self {
        if is_root() {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = child.id();
            Self {
                child: Some(child),
                pid,
            }
        } else {
            let user = fs::metadata("/proc/self").unwrap().uid();
            assert_ne!(
                fs::metadata("/proc/1").unwrap().uid(),
                user,
                "no process of another user is known"
            );
            Self { child: None, pid: 1 }
        }
    }

    /// As the program writes it down when it starts one.
    fn record(&self) -> String {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let start_time = fields.split(' ').nth(19).unwrap();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let (pid, boot_id) = (self.pid, boot_id.trim());
        format!(r#"{{"pid":{pid},"start_time":{start_time},"boot_id":"{boot_id}"}}"#)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_process_of_another_user_is_named_with_its_owner() {
    let host = Host::new();
    fs::create_dir(host.workspace()).unwrap();
    let folder = host.workspace().join("constellation-qemu");
    fs::create_dir(&folder).unwrap();
    let process = Foreign::find();
    fs::write(folder.join("cluster.json"), "{}").unwrap();
    fs::write(folder.join("metadata.process"), process.record()).unwrap();
    if is_root() {
        for path in [
            host.workspace(),
            folder.clone(),
            folder.join("cluster.json"),
            folder.join("metadata.process"),
        ] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let error = said(&host, &["terminate", "--yes"]);
    for part in [&format!("process {} (", process.pid), "belongs to root", "sudo"] {
        assert!(error.contains(part), "{error}");
    }
    // What is needed to end it later is still there.
    assert!(folder.join("metadata.process").exists());
    fs::remove_file(folder.join("metadata.process")).unwrap();
}
