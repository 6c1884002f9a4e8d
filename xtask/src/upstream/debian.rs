//! The packet filter tools that kube-proxy and flannel call, from Debian's packages.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use oci_archive::{Content, Layer};

use super::cache::{Cache, Key};
use crate::progress::Progress;

/// Unpacks the packages and what they depend on into one tar file, and returns it. No package's script is run.
pub(super) fn fetch(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let mut key = Key::new(SUITE);
    key.add(PACKAGES);
    let folder = cache.folder("packages", &key.finish(), |folder| {
        progress.step(&format!("fetching Debian packages ({PACKAGES})"), || {
            mmdebstrap(&folder.join(TAR))
        })
    })?;
    Ok(folder.join(TAR))
}

/// The layer with the tools: two programs under their usual names, the libraries beside them, and the licences.
pub(super) fn network_tools(packages: &Path) -> Result<Layer> {
    let mut layer = Layer::new();
    let tar = std::fs::File::open(packages).with_context(|| format!("opening {}", packages.display()))?;
    let mut found = Vec::new();
    for entry in tar::Archive::new(std::io::BufReader::new(tar)).entries()? {
        let mut entry = entry?;
        let path = entry
            .path()?
            .to_str()
            .context("a package has a path that is no UTF-8")?
            .to_owned();
        let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
        if !is_wanted(&path) {
            continue;
        }
        if entry.header().entry_type().is_symlink() {
            let target = entry.link_name()?.context("a link without target")?;
            layer.symlink(&path, target.to_str().context("a link's target is no UTF-8")?)?;
        } else if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            layer.file(&path, entry.header().mode()? & 0o755, Content::Bytes(bytes))?;
        } else if !entry.header().entry_type().is_dir() {
            bail!("{path} is neither file nor symbolic link");
        }
        found.push(path);
    }
    for path in PROGRAMS.iter().chain(&LOADER) {
        ensure!(
            found.iter().any(|found| found == path),
            "the packages in {} have no {path}",
            packages.display()
        );
    }
    layer.symlink("/lib", "usr/lib")?.symlink("/lib64", "usr/lib64")?;
    for name in [
        "iptables",
        "iptables-restore",
        "iptables-save",
        "ip6tables",
        "ip6tables-restore",
        "ip6tables-save",
    ] {
        layer.symlink(&format!("/usr/sbin/{name}"), "xtables-nft-multi")?;
    }
    Ok(layer)
}

fn mmdebstrap(tar: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", "--architectures=amd64", "--format=tar"]);
    command
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(tar)
        .env("SOURCE_DATE_EPOCH", "0");
    let status = command.status().context(
        "mmdebstrap cannot be run: install Debian's mmdebstrap and debian-archive-keyring, or pass --packages TAR",
    )?;
    ensure!(status.success(), "mmdebstrap failed: {status}");
    Ok(())
}

/// Debian's own closure of dependencies decides which libraries there are; nothing else of the packages is taken.
fn is_wanted(path: &str) -> bool {
    let library = path.strip_prefix(LIBRARIES).is_some_and(|rest| {
        let rest = rest.strip_prefix("xtables/").unwrap_or(rest);
        !rest.contains('/') && rest.contains(".so")
    });
    let licence = path.starts_with("/usr/share/doc/") && path.ends_with("/copyright");
    library || licence || PROGRAMS.contains(&path) || LOADER.contains(&path)
}

const SUITE: &str = "trixie";
const PACKAGES: &str = "iptables,nftables";
const TAR: &str = "packages.tar";
const PROGRAMS: [&str; 2] = ["/usr/sbin/nft", "/usr/sbin/xtables-nft-multi"];
const LOADER: [&str; 1] = ["/usr/lib64/ld-linux-x86-64.so.2"];
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_programs_libraries_and_licences_only() {
        for wanted in [
            "/usr/sbin/nft",
            "/usr/lib/x86_64-linux-gnu/libc.so.6",
            "/usr/lib/x86_64-linux-gnu/xtables/libxt_conntrack.so",
            "/usr/share/doc/libc6/copyright",
        ] {
            assert!(is_wanted(wanted), "{wanted}");
        }
        for other in [
            "/etc/passwd",
            "/usr/lib/x86_64-linux-gnu/gconv/BIG5.so",
            "/usr/sbin/xtables-legacy-multi",
            "/usr",
        ] {
            assert!(!is_wanted(other), "{other}");
        }
    }

    #[test]
    fn says_which_tool_the_packages_lack() {
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("packages.tar");
        tar::Builder::new(std::fs::File::create(&tar).unwrap())
            .finish()
            .unwrap();
        let err = network_tools(&tar).unwrap_err().to_string();
        assert!(err.ends_with("have no /usr/sbin/nft"), "{err}");
    }
}
