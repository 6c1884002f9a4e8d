//! Debian packages: apt chooses and downloads them, we unpack them.
//!
//! apt runs with its own configuration and checks Debian's signatures. Maintainer scripts never run: no package's code is executed
//! with the builder's rights, and the result depends on nothing but the archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use terminal::Progress;

use crate::cache::{Cache, digest_of_file};
use crate::definition::Definition;
use crate::lock::{Lock, LockedPackage, Purpose};
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
    progress.line("choosing Debian packages");
    let apt = Apt::update(cache)?;
    let node = apt.resolve(&definition.node_packages)?;
    let tools = apt.resolve(&definition.tools_packages)?;
    let both: BTreeSet<_> = node.iter().chain(&tools).cloned().collect();
    progress.line(&format!("downloading {} Debian packages", both.len()));
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
    progress.line(&format!("downloading {} Debian packages", missing.len()));
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
        prepare(path, &sources(Command::new("apt-get"))?)?;
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

/// Makes the folders and files of an apt that knows these sources only.
fn prepare(folder: &Path, sources: &str) -> Result<()> {
    for name in [
        "etc/preferences.d",
        "etc/apt.conf.d",
        "state/lists/partial",
        "cache/archives/partial",
        "archives",
    ] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("sources.list"), sources)?;
    fs::write(folder.join("apt.conf"), configuration(folder))?;
    Ok(())
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
///
/// Origin and codename are those of the mirror's Release file: a source may say `stable` instead of the codename, and other vendors
/// have suites of that name too.
fn sources(mut apt_get: Command) -> Result<String> {
    let output = run(apt_get
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
            "Component: main",
            "Origin: Debian",
        ])
        .stdin(Stdio::null()))
    .context("cannot run apt, which downloads the Debian packages")?;
    let output = String::from_utf8(output).context("apt-get's output is not text")?;
    let suites: BTreeSet<_> = output.lines().filter_map(suite_for_image).collect();
    ensure!(
        suites.iter().any(|(_, suite)| suite == RELEASE),
        "this machine's apt has no mirror of Debian bookworm or trixie; if its sources are new, run `apt-get update` first"
    );
    let line = |(mirror, suite)| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    Ok(suites.into_iter().map(line).collect())
}

/// Turns one of this machine's sources into one for the image: the same mirror, with the image's release instead of the machine's.
fn suite_for_image(source: &str) -> Option<(&str, String)> {
    let (mirror, codename) = source.split_once(' ')?;
    let (release, kind) = codename.split_once('-').unwrap_or((codename, ""));
    let known = matches!(release, "bookworm" | "trixie");
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
    /// A machine whose sources name mirrors in folders, by suite; each mirror lists one package.
    struct Machine(tempfile::TempDir);

    impl Machine {
        /// Suite, codename and origin of each source.
        fn with_sources(sources: &[(&str, &str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut lines = String::new();
            for (suite, codename, origin) in sources {
                let mirror = folder
                    .path()
                    .join("mirrors")
                    .join(codename)
                    .join(origin.replace(' ', "-"));
                let dist = mirror.join("dists").join(suite);
                fs::create_dir_all(dist.join("main/binary-amd64")).unwrap();
                let packages = dist.join("main/binary-amd64/Packages");
                fs::write(&packages, PACKAGES).unwrap();
                let digest = digest_of_file(&packages).unwrap();
                let release = format!(
                    "Origin: {origin}\nSuite: {suite}\nCodename: {codename}\nArchitectures: amd64\nComponents: main\n\
                     Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {} main/binary-amd64/Packages\n",
                    PACKAGES.len()
                );
                fs::write(dist.join("Release"), release).unwrap();
                lines += &format!("deb [trusted=yes] file:{} {suite} main\n", mirror.display());
            }
            prepare(folder.path(), &lines).unwrap();
            let machine = Self(folder);
            run(machine.command("apt-get").args(["-qq", "update"])).unwrap();
            machine
        }

        fn command(&self, program: &str) -> Command {
            let mut command = Command::new(program);
            command.env("APT_CONFIG", self.0.path().join("apt.conf"));
            command
        }

        /// The suites for the image, without the mirrors they come from.
        fn suites(&self) -> Result<Vec<String>> {
            let sources = sources(self.command("apt-get"))?;
            let suite = |line: &str| line.split(' ').nth(3).unwrap().to_owned();
            let mut suites: Vec<_> = sources.lines().map(suite).collect();
            suites.sort();
            Ok(suites)
        }

        /// The mirror that scripts/install-dependencies finds.
        fn mirror_in_script(&self, codename: &str) -> String {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/install-dependencies");
            let function = "eval \"$(sed -n '/^mirror_of()/,/^}/p' \"$1\")\"; mirror_of \"$2\"";
            let output = run(self.command("sh").args(["-euc", function, "sh", script, codename])).unwrap();
            String::from_utf8(output).unwrap()
        }
    }

    const PACKAGES: &str = "Package: a\nVersion: 1\nArchitecture: amd64\nFilename: a.deb\nSize: 1\n\n";
    const ALIASES: [(&str, &str, &str); 4] = [
        ("oldstable", "bookworm", "Debian"),
        ("oldstable-updates", "bookworm-updates", "Debian"),
        ("oldstable-backports", "bookworm-backports", "Debian Backports"),
        ("stable-security", "trixie-security", "Debian"),
    ];

    #[test]
    fn sources_that_name_a_suite_are_understood() {
        let suites = Machine::with_sources(&ALIASES).suites().unwrap();
        assert_eq!(suites, ["trixie", "trixie-security", "trixie-updates"]);
    }

    #[test]
    fn another_vendor_is_not_a_mirror_of_debian() {
        let vendor = ("stable", "trixie", "Browser LLC");
        let both = [vendor, ("stable", "trixie", "Debian")];
        assert_eq!(Machine::with_sources(&both).suites().unwrap(), ["trixie"]);
        let error = Machine::with_sources(&[vendor]).suites().unwrap_err().to_string();
        assert!(error.contains("has no mirror of Debian"), "{error}");
    }

    #[test]
    fn the_script_understands_them_too() {
        let machine = Machine::with_sources(&ALIASES);
        for codename in ["bookworm", "bookworm-backports"] {
            let mirror = machine.mirror_in_script(codename);
            assert!(mirror.contains(&format!("/{codename}/Debian")), "{mirror:?}");
        }
        assert_eq!(machine.mirror_in_script("trixie-backports"), "");
        let vendor = Machine::with_sources(&[("stable", "trixie", "Browser LLC")]);
        assert_eq!(vendor.mirror_in_script("trixie"), "");
    }
}
