//! A workspace, and the program that works in it: on the machines of tests, or the released one on a machine whose QEMU and swtpm
//! are shell scripts.
#![allow(dead_code, reason = "every test program uses its own part")]

pub(crate) mod api_server;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;
use test_machines::{SOFTWARE_TPM, Technology, program_for_tests};
use test_provider::TestProvider;

/// Answers like QEMU as far as the provider asks. With the file `die` beside it a machine says why and ends.
const QEMU: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo 'QEMU emulator version 10.0.2 (test)'; exit 0; fi
case "$*" in *isa-debug-exit*) echo 'no KVM in a test' >&2; exit 1;; esac
here=$(dirname "$0")
echo "$@" > arguments
if [ -e "$here/die" ]; then
    printf 'starting\nconstellation: boot failed: state disk: the header is not ours\nconstellation: powering off\n' > console.log
    echo $$ > qemu.pid
    exit 0
fi
echo starting > console.log
echo $$ > qemu.pid
exec sleep 1000
"#;

const SWTPM: &str = "#!/bin/sh\n: > tpm.sock\nexec sleep 1000\n";

pub(crate) const COMPONENTS: &str = r#"{"version":"v1","kubernetes_version":"v1.35.4","components":[]}"#;

pub(crate) struct Host {
    folder: TempDir,
    technology: &'static dyn Technology,
    released: bool,
}

impl Host {
    /// Image and mirror are there; the workspace is not. The program runs on the machines of tests.
    pub(crate) fn new() -> Self {
        Self::with(SOFTWARE_TPM)
    }

    /// With an image for machines of this technology.
    pub(crate) fn with(technology: &'static dyn Technology) -> Self {
        Self::made("host", technology, false)
    }

    /// The released program, with scripts for QEMU and swtpm, and firmware.
    pub(crate) fn released() -> Self {
        Self::released_in("host")
    }

    /// All its paths hold this.
    pub(crate) fn released_in(name: &str) -> Self {
        let host = Self::made(name, SOFTWARE_TPM, true);
        host.script("qemu-system-x86_64", QEMU);
        host.script("swtpm", SWTPM);
        for file in ["firmware/OVMF_CODE_4M.fd", "firmware/OVMF_VARS_4M.fd"] {
            fs::write(host.path(file), "").unwrap();
        }
        host
    }

    fn made(name: &str, technology: &'static dyn Technology, released: bool) -> Self {
        let host = Self {
            folder: tempfile::Builder::new().prefix(name).tempdir().unwrap(),
            technology,
            released,
        };
        for folder in ["bin", "firmware", "image", "mirror"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        for (file, content) in [
            ("image/node.img", ""),
            ("image/reference-values.json", &technology.image().to_json()),
            ("mirror/components.json", COMPONENTS),
        ] {
            fs::write(host.path(file), content).unwrap();
        }
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.path("workspace")
    }

    /// The machines of the workspace, which is there.
    pub(crate) fn machines(&self) -> TestProvider {
        TestProvider::new(&self.workspace())
    }

    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// A configuration for this host, with small nodes.
    pub(crate) fn configure(&self) {
        fs::create_dir_all(self.workspace()).unwrap();
        let (image, mirror) = (self.path("image"), self.path("mirror"));
        let written = self.run(&[
            "config",
            "generate",
            "qemu",
            "--image",
            &text(&image),
            "--mirror",
            &text(&mirror),
        ]);
        assert!(written.status.success(), "{}", stderr(&written));
        // The provider of tests takes any configuration.
        let firmware = format!("firmware: {}", serde_json::to_string(&self.path("firmware")).unwrap());
        self.change_config("# firmware: /usr/share/OVMF", &firmware);
        self.change_config("acceleration: auto", "acceleration: software");
        self.change_config("memoryMiB: 3072", "memoryMiB: 2048");
    }

    pub(crate) fn change_config(&self, from: &str, to: &str) {
        let path = self.workspace().join("constellation-conf.yaml");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(&path, config.replace(from, to)).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(&self.workspace(), arguments)
    }

    pub(crate) fn command_in(&self, workspace: &Path, arguments: &[&str]) -> Command {
        let mut command = self.bare_command();
        command.arg("--workspace").arg(workspace).args(arguments);
        command
    }

    /// The program without arguments.
    pub(crate) fn bare_command(&self) -> Command {
        let released = Path::new(env!("CARGO_BIN_EXE_constellation"));
        let mut command = if self.released {
            Command::new(released)
        } else {
            program_for_tests(self.technology, released.parent().unwrap(), "constellation")
        };
        // Usage names the program as it was called.
        command.arg0("constellation");
        let mut path = OsString::from(self.path("bin"));
        path.push(":/usr/bin:/bin");
        command.env("PATH", path).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts a command and returns when it says this.
    pub(crate) fn until(&self, arguments: &[&str], marker: &str) -> Running {
        let child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Running {
            child,
            said: String::new(),
        };
        running.until(marker);
        running
    }

    /// Processes that work in this host's folder, also if it is gone.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let works_here =
            |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(self.folder.path()));
        let mut pids: Vec<i32> = pids.filter(works_here).collect();
        pids.sort_unstable();
        pids
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.workspace()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed must not leave processes. If the program is not built, there are none, and the panic that says so must not
        // become an abort, which would leave those of the other tests.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| self.run(&["terminate", "--yes"])));
    }
}

pub(crate) struct Running {
    child: Child,
    pub(crate) said: String,
}

impl Running {
    /// Reads on until the command says this.
    pub(crate) fn until(&mut self, marker: &str) {
        let mut errors = self.child.stderr.take().unwrap();
        let mut byte = [0];
        while !self.said.contains(marker) {
            assert_eq!(
                errors.read(&mut byte).unwrap(),
                1,
                "ended before {marker:?}: {}",
                self.said
            );
            self.said.push(byte[0] as char);
        }
        self.child.stderr = Some(errors);
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end and gives everything that was said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut errors = BufReader::new(self.child.stderr.take().unwrap());
        let mut line = String::new();
        while errors.read_line(&mut line).unwrap() > 0 {
            self.said.push_str(&line);
            line.clear();
        }
        (self.child.wait().unwrap().code(), self.said)
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
