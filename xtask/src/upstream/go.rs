//! Runs the ordinary Go client.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::recipe::{Module, Source};

/// The compiler. The Go client fetches exactly this one from the module proxy if it is another itself, so that the
/// programs do not depend on what is installed.
pub(super) const TOOLCHAIN: &str = "go1.26.8";

/// What shapes the output, apart from the linker's flags.
pub(super) const FLAGS: [&str; 3] = ["-trimpath", "-mod=readonly", "-buildvcs=false"];

/// The first Go client that can fetch another compiler.
const OLDEST_CLIENT: (u32, u32) = (1, 21);

/// An installed Go client.
pub(super) struct Go {
    program: PathBuf,
}

impl Go {
    /// Finds a client that is new enough: in `PATH`, or where Go's own archive is unpacked to.
    pub(super) fn find() -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        Self::find_in(env::split_paths(&path).chain(["/usr/local/go/bin".into()]))
    }

    fn find_in(folders: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let mut programs = folders.into_iter().map(|folder| folder.join("go"));
        let Some(program) = programs.find(|program| program.is_file()) else {
            bail!(
                "Go is missing: install Go 1.21 or newer (from go.dev/doc/install, or Debian's golang-go from backports)"
            )
        };
        let output = Command::new(&program)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .output()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match parse_version(&version) {
            Some(number) if number >= OLDEST_CLIENT => Ok(Self { program }),
            _ => bail!(
                "{} is version {version:?}, but Go 1.21 or newer is required",
                program.display()
            ),
        }
    }

    /// Builds a module's programs into `out` under our names.
    pub(super) fn build(&self, module: &Module, sources: &Path, out: &Path) -> Result<()> {
        let folder = sources.join(&module.folder);
        let copy = match &module.source {
            Source::Folder => None,
            Source::Copy { module, without } => Some(self.copy_without(&folder, module, without)?),
        };
        let folder = copy.as_ref().map_or(folder.as_path(), tempfile::TempDir::path);
        let built = tempfile::tempdir_in(out)?;
        // A package "." would be named after its module; all others keep the names that Go gives them.
        let target = built.path().join(if let [(name, ".")] = module.programs[..] {
            name
        } else {
            ""
        });
        let mut go = self.command(folder);
        go.arg("build")
            .args(FLAGS)
            .arg("-ldflags")
            .arg(module.link_flags())
            .arg("-o")
            .arg(target);
        go.args(module.programs.iter().map(|(_, package)| package));
        run(go).with_context(|| format!("building {}", module.title))?;
        if copy.is_none() && module.programs.iter().any(|(_, package)| package.starts_with('.')) {
            self.test(folder)?;
        }
        for (name, package) in &module.programs {
            let file = built
                .path()
                .join(if *package == "." { name } else { output_name(package) });
            fs::rename(&file, out.join(name)).with_context(|| format!("{name} was not built"))?;
        }
        Ok(())
    }

    /// Runs the tests of the folder's own packages.
    fn test(&self, folder: &Path) -> Result<()> {
        let mut go = self.command(folder);
        go.args(["test", "./..."]);
        run(go).map(|_| ())
    }

    /// Copies a published module, checked against the folder's `go.sum`, and leaves lines of its `main.go` out.
    fn copy_without(&self, folder: &Path, module: &str, without: &[&str]) -> Result<tempfile::TempDir> {
        let mut go = self.command(folder);
        go.args(["mod", "download", "-json", module]);
        let downloaded: Downloaded = serde_json::from_slice(&run(go)?)?;
        let copy = tempfile::tempdir()?;
        copy_tree(&downloaded.dir, copy.path())?;
        let main = copy.path().join("main.go");
        let text = fs::read_to_string(&main)?;
        for line in without {
            ensure!(
                text.lines().any(|other| other == *line),
                "main.go of {module} has no line {line:?}"
            );
        }
        let kept = text
            .lines()
            .filter(|line| !without.contains(line))
            .flat_map(|line| [line, "\n"]);
        fs::write(&main, kept.collect::<String>())?;
        Ok(copy)
    }

    /// A command whose result depends on nothing in the environment but the proxy settings and cache folders.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let processes = available_parallelism().map_or(2, usize::from).min(MAX_COMPILERS);
        command
            .current_dir(folder)
            .env("GOTOOLCHAIN", TOOLCHAIN)
            .env("GOFLAGS", format!("-p={processes}"));
        command
            .env("CGO_ENABLED", "0")
            .env("GOOS", "linux")
            .env("GOARCH", "amd64")
            .env("GOAMD64", "v1");
        command
            .env("GOWORK", "off")
            .env_remove("GOEXPERIMENT")
            .env_remove("GODEBUG");
        if env::var_os("GOMEMLIMIT").is_none() {
            command.env("GOMEMLIMIT", "6GiB");
        }
        command
    }
}

/// Runs Go and returns what it prints. It names every module it fetches, which is shown only if it fails.
fn run(mut go: Command) -> Result<Vec<u8>> {
    let output = go.output().context("running go")?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("go: downloading "))
            .collect();
        let last = lines.len().saturating_sub(SHOWN_LINES);
        bail!("go failed ({}):\n{}", output.status, lines[last..].join("\n"));
    }
    Ok(output.stdout)
}

/// What `go mod download -json` prints.
#[derive(Deserialize)]
struct Downloaded {
    #[serde(rename = "Dir")]
    dir: PathBuf,
}

/// The file that `go build -o DIR/` makes of a package: its last part that is no major version.
fn output_name(package: &str) -> &str {
    let is_major = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|digits| digits.parse::<u32>().is_ok())
    };
    package.rsplit('/').find(|part| !is_major(part)).unwrap_or(package)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("go")?.split(['.', 'r', '-', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Files of the module cache are read-only; their copies are not.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::write(&target, fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// How much of a failed build's messages is shown.
const SHOWN_LINES: usize = 40;

/// Each compiler of Kubernetes' larger packages takes more than a gigabyte.
const MAX_COMPILERS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_to_get_go() {
        let folder = tempfile::tempdir().unwrap();
        let err = Go::find_in([folder.path().to_owned()]).err().unwrap().to_string();
        assert!(err.starts_with("Go is missing: install Go 1.21"), "{err}");
    }

    #[test]
    fn reads_versions_of_go() {
        for (text, expected) in [
            ("go1.26.8", Some((1, 26))),
            ("go1.21rc2", Some((1, 21))),
            ("go1.27-devel_abc", Some((1, 27))),
            ("devel", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn knows_what_go_calls_a_program() {
        assert_eq!(output_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(output_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(output_name("./flannel"), "flannel");
    }
}
