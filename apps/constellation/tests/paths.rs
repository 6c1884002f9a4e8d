//! Every path that is text works; another one is refused at once, by its name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use support::{Host, stderr, stdout};

#[test]
fn a_cluster_lives_in_a_folder_of_any_name() {
    let host = Host::released_in("o'brien \"müller\"\\,\n$HOME # 🦀");
    host.configure();
    host.until(&["mini", "up"], "control-plane-0 is booting\n").kill();
    assert_eq!(host.processes().len(), 5);
    let arguments = fs::read_to_string(
        host.workspace()
            .join("constellation-qemu/nodes/control-plane-0/arguments"),
    )
    .unwrap();
    let image = host.path("image").display().to_string().replace(',', ",,");
    assert!(arguments.contains(&image), "{arguments}");
    assert!(stdout(&host.run(&["status"])).contains("control-plane-0"));
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.files(), ["constellation-conf.yaml"]);
}

#[test]
fn a_path_that_is_not_utf8_is_refused_by_name() {
    let host = Host::new();
    fs::create_dir(host.workspace()).unwrap();
    let bad = PathBuf::from(OsString::from_vec(b"/tmp/m\xfcller".to_vec()));
    for before in [
        &["--workspace"][..],
        &["config", "generate", "qemu", "--image"],
        &["config", "generate", "qemu", "--mirror"],
        &["mini", "up", "--image"],
        &["mini", "up", "--mirror"],
        &["mirror", "create"],
        &["mirror", "create", "x", "--from"],
        &["mirror", "create", "x", "--list"],
    ] {
        let mut command = host.bare_command();
        let output = command
            .current_dir(host.workspace())
            .args(before)
            .arg(&bad)
            .output()
            .unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{before:?}: {error}");
        assert!(
            error.contains("\"/tmp/m\\xFCller\" is not valid UTF-8"),
            "{before:?}: {error}"
        );
        assert_eq!(host.files(), Vec::<String>::new(), "{before:?}");
    }
}

/// The path of the current folder is not typed.
#[test]
fn a_current_folder_whose_path_is_not_utf8_is_refused_by_name() {
    let host = Host::new();
    let bad = host.path("").join(OsString::from_vec(b"m\xfcller".to_vec()));
    fs::create_dir(&bad).unwrap();
    let workspace = host.workspace();
    fs::create_dir(&workspace).unwrap();
    let workspace = workspace.to_str().unwrap();
    for arguments in [
        &["status"][..],
        &["apply", "--yes"],
        &["mini", "up"],
        &["mini", "down"],
        &["terminate", "--yes"],
        &["config", "generate", "qemu"],
        &[
            "config",
            "generate",
            "qemu",
            "--workspace",
            workspace,
            "--image",
            "image",
        ],
        &[
            "config",
            "generate",
            "qemu",
            "--workspace",
            workspace,
            "--mirror",
            "mirror",
        ],
    ] {
        let output = host.bare_command().current_dir(&bad).args(arguments).output().unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(
            error.contains("m\\xFCller") && error.contains("is not valid UTF-8"),
            "{arguments:?}: {error}"
        );
        assert_eq!(fs::read_dir(&bad).unwrap().count(), 0, "{arguments:?}");
        assert_eq!(host.files(), Vec::<String>::new(), "{arguments:?}");
    }
}
