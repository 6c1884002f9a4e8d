//! What is in the container images of the mirror: everything their programs need to start, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use goblin::elf::Elf;
use serde_json::Value;

/// Where Debian's dynamic loader looks.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Libraries that programs open by themselves: iptables' matches and targets.
const OPENED: &str = "usr/lib/x86_64-linux-gnu/xtables/";

#[test]
fn programs_find_the_libraries_they_name_and_nothing_lies_beside_them() -> Result<()> {
    for archive in archives()? {
        let image = Image::read(&archive)?;
        let needed = image.needed().with_context(|| archive.display().to_string())?;
        let superfluous: Vec<_> = image
            .entries
            .keys()
            .filter(|path| !needed.contains(*path) && !is_text(path))
            .collect();
        ensure!(superfluous.is_empty(), "{}: {superfluous:?}", archive.display());
    }
    Ok(())
}

#[test]
fn images_that_change_packet_filters_have_the_tools_for_it() -> Result<()> {
    for archive in archives()? {
        let image = Image::read(&archive)?;
        let found: Vec<_> = image.in_folder("usr/sbin").collect();
        let changes_filters = archive.ends_with("kube-proxy.oci.tar") || archive.ends_with("flannel.oci.tar");
        let expected: &[_] = if changes_filters {
            &[
                "ip6tables",
                "ip6tables-restore",
                "ip6tables-save",
                "iptables",
                "iptables-restore",
                "iptables-save",
                "nft",
                "xtables-nft-multi",
            ]
        } else {
            &[]
        };
        ensure!(found == expected, "{}: {found:?}", archive.display());
    }
    Ok(())
}

/// The archives of a mirror; `make e2e` sets the variable.
fn archives() -> Result<Vec<PathBuf>> {
    const MIRROR: &str = "CONSTELLATION_E2E_MIRROR";
    let mirror = env::var_os(MIRROR).with_context(|| format!("{MIRROR} is not set"))?;
    let folder = Path::new(&mirror).join("images");
    let archives: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(!archives.is_empty(), "{} is empty", folder.display());
    Ok(archives)
}

/// Files that are read, not run.
fn is_text(path: &str) -> bool {
    path.starts_with("etc/") || path.starts_with("usr/share/doc/")
}

enum Entry {
    File(Vec<u8>),
    Link(String),
}

/// An image as its container sees it.
struct Image {
    /// By path without a leading slash. Folders are left out.
    entries: BTreeMap<String, Entry>,
    entrypoint: String,
}

impl Image {
    fn read(archive: &Path) -> Result<Self> {
        let files = unpack(File::open(archive).with_context(|| format!("opening {}", archive.display()))?)?;
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().context("no digest")?;
            match files.get(&format!("blobs/{}", digest.replace(':', "/"))) {
                Some(Entry::File(bytes)) => Ok(bytes.as_slice()),
                _ => bail!("{digest} is missing"),
            }
        };
        let Some(Entry::File(index)) = files.get("index.json") else {
            bail!("{} has no index.json", archive.display());
        };
        let index: Value = serde_json::from_slice(index)?;
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
        let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
        let mut entries = BTreeMap::new();
        for layer in manifest["layers"].as_array().context("no layers")? {
            entries.extend(unpack(zstd::Decoder::new(blob(layer)?)?)?);
        }
        let entrypoint = config["config"]["Entrypoint"][0].as_str().context("no entrypoint")?;
        Ok(Self {
            entries,
            entrypoint: entrypoint.to_owned(),
        })
    }

    /// Names of the files and links in a folder.
    fn in_folder(&self, folder: &str) -> impl Iterator<Item = &str> {
        let names = self.entries.keys().filter_map(move |path| path.rsplit_once('/'));
        names.filter_map(move |(parent, name)| (parent == folder).then_some(name))
    }

    /// Everything that is reached from the programs: what they link to, the loader and libraries they name, and so on.
    fn needed(&self) -> Result<BTreeSet<String>> {
        let is_program =
            |path: &&String| path.contains("bin/") || path.starts_with(OPENED) || **path == self.entrypoint[1..];
        let mut left: Vec<_> = self.entries.keys().filter(is_program).cloned().collect();
        let mut needed = BTreeSet::new();
        while let Some(path) = left.pop() {
            let (links, file) = self.follow(&path)?;
            needed.extend(links);
            if needed.insert(file.clone()) {
                left.extend(
                    self.named_by(&file)
                        .with_context(|| format!("{file} cannot be started"))?,
                );
            }
        }
        Ok(needed)
    }

    /// The loader and the libraries that a program or library names.
    fn named_by(&self, file: &str) -> Result<Vec<String>> {
        let Some(Entry::File(bytes)) = self.entries.get(file) else {
            bail!("{file} is not a file");
        };
        let elf = Elf::parse(bytes)?;
        let libraries = elf.libraries.iter().map(|name| format!("{LIBRARIES}/{name}"));
        let loader = elf.interpreter.map(|path| path.trim_start_matches('/').to_owned());
        Ok(libraries.chain(loader).collect())
    }

    /// The links on the way and the file at its end.
    fn follow(&self, path: &str) -> Result<(Vec<String>, String)> {
        let mut links = Vec::new();
        let mut path = path.to_owned();
        // path_resolution(7)
        for _ in 0..40 {
            let prefixes = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
            let link = prefixes
                .into_iter()
                .find_map(|end| match self.entries.get(&path[..end]) {
                    Some(Entry::Link(target)) => Some((end, target)),
                    _ => None,
                });
            let Some((end, target)) = link else {
                ensure!(self.entries.contains_key(&path), "{path} is missing");
                return Ok((links, path));
            };
            let folder = path[..end].rsplit_once('/').map_or("", |(folder, _)| folder);
            let rest = &path[end..];
            let next = match target.strip_prefix('/') {
                Some(target) => format!("{target}{rest}"),
                None => normal(&format!("{folder}/{target}{rest}")),
            };
            links.push(path[..end].to_owned());
            path = next;
        }
        bail!("{path}: too many links")
    }
}

/// Without a leading slash and `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

fn unpack(tar: impl Read) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    for entry in tar::Archive::new(BufReader::new(tar)).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().context("a path that is not UTF-8")?.to_owned();
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            let target = entry.link_name()?.context("a link without target")?;
            entries.insert(
                path,
                Entry::Link(target.to_str().context("a target that is not UTF-8")?.to_owned()),
            );
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            entries.insert(path, Entry::File(bytes));
        }
    }
    Ok(entries)
}
