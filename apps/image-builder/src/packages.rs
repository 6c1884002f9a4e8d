//! Debian packages: apt chooses and downloads them, we unpack them.
//!
//! apt runs with its own configuration and checks Debian's signatures. Maintainer scripts never run: no package's code is executed
//! with the builder's rights, and the result depends on nothing but the archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cache::{Cache, digest_of_file};
use crate::definition::Definition;
use crate::lock::{Lock, LockedPackage, Purpose};
use crate::progress::Progress;
use crate::tools::run;

const RELEASE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package, named the way apt names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    name: String,
    version: String,
}

/// Chooses the newest versions of everything the definition names, downloads them and returns the lock.
pub(crate) fn choose(definition: &Definition, cache: &Cache, progress: &Progress) -> Result<Lock> {
    progress.say("choosing Debian packages");
    let apt = Apt::update(cache)?;
    let node = apt.resolve(&definition.node_packages)?;
    let tools = apt.resolve(&definition.tools_packages)?;
    let both: BTreeSet<_> = node.iter().chain(&tools).cloned().collect();
    progress.say(&format!("downloading {} Debian packages", both.len()));
    let archives = apt.download(&both)?;
    let mut lock = Vec::new();
    for (purpose, packages) in [(Purpose::Node, node), (Purpose::Tools, tools)] {
        for package in packages {
            let archive = &archives[&package];
            let sha256 = digest_of_file(archive)?;
            let Chosen { name, version } = package;
            lock.push(LockedPackage {
                purpose,
                name,
                version,
                sha256,
            });
        }
    }
    let lock = Lock::new(lock);
    apt.store(&lock, &archives, cache)?;
    Ok(lock)
}

/// Makes sure that every package of the lock is in the cache.
pub(crate) fn fetch(lock: &Lock, cache: &Cache, progress: &Progress) -> Result<()> {
    let missing: BTreeSet<_> = lock
        .packages()
        .filter_map(|package| match archive_of(package, cache) {
            Ok(path) if path.is_file() => None,
            _ => Some(Chosen {
                name: package.name.clone(),
                version: package.version.clone(),
            }),
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress.say(&format!("downloading {} Debian packages", missing.len()));
    let apt = Apt::update(cache)?;
    let archives = apt.download(&missing)?;
    apt.store(lock, &archives, cache)
}

/// Unpacks the packages of one purpose over each other.
pub(crate) fn unpack(lock: &Lock, purpose: Purpose, cache: &Cache, into: &Path) -> Result<()> {
    for package in lock.of(purpose) {
        let archive = archive_of(package, cache)?;
        let sha256 = digest_of_file(&archive)?;
        ensure!(
            sha256 == package.sha256,
            "{} has digest {sha256}, the lock says {}",
            archive.display(),
            package.sha256
        );
        unpack_one(&archive, into).with_context(|| format!("cannot unpack {} {}", package.name, package.version))?;
    }
    Ok(())
}

/// The definition's lock, if it covers everything that the definition names.
pub(crate) fn load_lock(definition: &Definition) -> Result<Option<Lock>> {
    let path = definition.lock_file();
    if !path.is_file() {
        return Ok(None);
    }
    let lock: Lock = fs::read_to_string(&path)?.parse()?;
    let covers = |purpose, names: &[String]| names.iter().all(|name| lock.contains(purpose, name));
    let complete =
        covers(Purpose::Node, &definition.node_packages) && covers(Purpose::Tools, &definition.tools_packages);
    Ok(complete.then_some(lock))
}

fn archive_of(package: &LockedPackage, cache: &Cache) -> Result<PathBuf> {
    Ok(cache.packages()?.join(format!("{}.deb", package.sha256)))
}

fn unpack_one(archive: &Path, into: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = dpkg.stdout.take().ok_or_else(|| anyhow!("dpkg-deb has no output"))?;
    let tar = run(Command::new("tar")
        .args([
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--preserve-permissions",
            "--directory",
        ])
        .arg(into)
        .stdin(stream));
    let status = dpkg.wait()?;
    tar?;
    ensure!(status.success(), "dpkg-deb failed ({status})");
    Ok(())
}

/// apt with its own configuration and state, and this machine's mirror.
struct Apt {
    folder: tempfile::TempDir,
}

impl Apt {
    fn update(cache: &Cache) -> Result<Self> {
        let folder = cache.temporary_for_downloads()?;
        let path = folder.path();
        for name in [
            "etc/preferences.d",
            "etc/apt.conf.d",
            "state/lists/partial",
            "cache/archives/partial",
            "archives",
        ] {
            fs::create_dir_all(path.join(name))?;
        }
        fs::write(path.join("status"), "")?;
        fs::write(path.join("sources.list"), sources()?)?;
        fs::write(path.join("apt.conf"), configuration(path))?;
        let apt = Self { folder };
        run(apt.command("apt-get").args(["update", "--error-on=any"])).context("cannot reach the Debian mirror")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.path().join("apt.conf"))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// The named packages and everything they depend on.
    fn resolve(&self, packages: &[String]) -> Result<BTreeSet<Chosen>> {
        let output = run(self
            .command("apt-get")
            .args(["install", "--print-uris", "-qq", "-y"])
            .args(packages))?;
        let lines = String::from_utf8(output).context("apt-get's output is not text")?;
        lines
            .lines()
            .map(|line| {
                let name = line
                    .split(' ')
                    .nth(1)
                    .ok_or_else(|| anyhow!("cannot parse this line of apt-get: {line}"))?;
                Chosen::from_file_name(name)
            })
            .collect()
    }

    fn download(&self, packages: &BTreeSet<Chosen>) -> Result<BTreeMap<Chosen, PathBuf>> {
        let archives = self.folder.path().join("archives");
        run(self
            .command("apt-get")
            .args(["download", "-qq"])
            .args(
                packages
                    .iter()
                    .map(|package| format!("{}={}", package.name, package.version)),
            )
            .current_dir(&archives))?;
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            found.insert(Chosen::from_file_name(name)?, path);
        }
        if let Some(absent) = packages.iter().find(|package| !found.contains_key(package)) {
            bail!("apt-get did not download {} {}", absent.name, absent.version);
        }
        Ok(found)
    }

    /// Moves downloaded archives into the cache, where they are named by their digests in the lock.
    fn store(&self, lock: &Lock, archives: &BTreeMap<Chosen, PathBuf>, cache: &Cache) -> Result<()> {
        for package in lock.packages() {
            let chosen = Chosen {
                name: package.name.clone(),
                version: package.version.clone(),
            };
            let Some(archive) = archives.get(&chosen).filter(|archive| archive.is_file()) else {
                continue;
            };
            let sha256 = digest_of_file(archive)?;
            ensure!(
                sha256 == package.sha256,
                "the mirror's {} {} has digest {sha256}, the lock says {}",
                package.name,
                package.version,
                package.sha256
            );
            atomic_file::rename(archive, &archive_of(package, cache)?)?;
        }
        Ok(())
    }
}

impl Chosen {
    /// Parses `NAME_VERSION_ARCHITECTURE.deb`. The colon after an epoch is written `%3a`.
    fn from_file_name(file: &str) -> Result<Self> {
        let mut parts = file.split('_');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(version), Some(_), None) => Ok(Self {
                name: name.to_owned(),
                version: version.replace("%3a", ":"),
            }),
            _ => bail!("{file} is not the name of a Debian package"),
        }
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir \"{folder}\";\n\
         Dir::Etc \"{folder}/etc\";\n\
         Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures \"amd64\";\n\
         APT::Install-Recommends \"false\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n"
    )
}

/// apt sources for the image's release, on the mirror from which this machine gets its own packages.
fn sources() -> Result<String> {
    let output = run(Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
            "Component: main",
        ])
        .stdin(Stdio::null()))
    .context("cannot run apt, which downloads the Debian packages")?;
    let output = String::from_utf8(output).context("apt-get's output is not text")?;
    let suites: BTreeSet<_> = output.lines().filter_map(suite_for_image).collect();
    ensure!(
        suites.iter().any(|(_, suite)| suite == RELEASE),
        "this machine's apt has no mirror of Debian bookworm or trixie"
    );
    let line = |(mirror, suite)| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    Ok(suites.into_iter().map(line).collect())
}

/// Turns one of this machine's sources into one for the image: the same mirror, with the image's release instead of the machine's.
fn suite_for_image(source: &str) -> Option<(&str, String)> {
    let (mirror, release) = source.split_once(' ')?;
    let (codename, kind) = release.split_once('-').unwrap_or((release, ""));
    let known = matches!(codename, "bookworm" | "trixie");
    match kind {
        "" if known => Some((mirror, RELEASE.to_owned())),
        "security" | "updates" if known => Some((mirror, format!("{RELEASE}-{kind}"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_gives_name_and_version() {
        let package = Chosen::from_file_name("libcap2_1%3a2.75-10+deb13u1+b3_amd64.deb").unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str()),
            ("libcap2", "1:2.75-10+deb13u1+b3")
        );
        assert!(Chosen::from_file_name("index.html").is_err());
    }

    #[test]
    fn sources_of_the_machine_become_sources_of_the_image() {
        let suite = |source| suite_for_image(source).map(|(_, suite)| suite);
        assert_eq!(
            suite("http://mirror.example/debian/ bookworm").as_deref(),
            Some("trixie")
        );
        assert_eq!(
            suite("http://mirror.example/s/ bookworm-security").as_deref(),
            Some("trixie-security")
        );
        assert_eq!(suite("http://mirror.example/debian/ bookworm-backports"), None);
        assert_eq!(suite("http://mirror.example/other cloud-sdk-bookworm"), None);
    }
}
