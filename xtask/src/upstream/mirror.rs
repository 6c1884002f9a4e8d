//! The files of a mirror.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use atomic_file::{Access, NewFile};
use build_cache::Key;
use digest::{Digest, HashingWriter};
use flate2::{Compression, GzBuilder};
use kubernetes_components::{Component, ComponentList, MIRROR_DOCUMENT};
use oci_archive::{Content, Layer, write_archive};
use terminal::Progress;

use super::images::NamedImage;
use super::programs::Programs;
use super::recipe::{CNI_PLUGINS, PROGRAMS, Recipe};
use crate::folders;

/// A complete mirror.
pub(super) struct MirrorFolder {
    folder: PathBuf,
}

impl MirrorFolder {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn into_path(self) -> PathBuf {
        self.folder
    }

    /// Copies the mirror to `out`, which is replaced as a whole if it is a mirror or empty.
    pub(super) fn copy_to(&self, out: &Path) -> Result<PathBuf> {
        if fs::read(out.join(MIRROR_DOCUMENT)).ok() == fs::read(self.folder.join(MIRROR_DOCUMENT)).ok()
            && same_files(&self.folder, out)?
        {
            return Ok(out.to_owned());
        }
        let is_free = !out.exists() || out.join(MIRROR_DOCUMENT).is_file() || fs::read_dir(out)?.next().is_none();
        ensure!(
            is_free,
            "{} is in the way: it is neither empty nor a mirror",
            out.display()
        );
        let out = std::path::absolute(out)?;
        let parent = out.parent().context("the root folder cannot be a mirror")?;
        fs::create_dir_all(parent)?;
        let name = out.file_name().context("the folder has no name")?.display();
        let (new, old) = (parent.join(format!(".{name}.new")), parent.join(format!(".{name}.old")));
        // An interrupted run left them.
        folders::remove(&new)?;
        folders::remove(&old)?;
        copy_tree(&self.folder, &new)?;
        if out.exists() {
            fs::rename(&out, &old)?;
        }
        fs::rename(&new, &out)?;
        folders::remove(&old)?;
        Ok(out)
    }
}

/// Everything a mirror depends on; `modules` are the keys of the modules with its programs, `archives` is the folder with the
/// sources of what writes container images.
pub(super) fn key(recipe: &Recipe, modules: &[Key], packet_filter: &Layer, archives: &Path) -> Result<Key> {
    let key = modules.iter().fold(Key::new(recipe.kubernetes), Key::key);
    let key = recipe.image_names().iter().fold(key, |key, name| key.text(name));
    let mut layer = HashingWriter::new(io::sink());
    packet_filter.write_tar(&mut layer)?;
    let (_, digest, _) = layer.finish();
    Ok(key
        // What the images and the archive are made of is written in these, and how an archive is written in its crate.
        .folder(archives)?
        .text(include_str!("images.rs"))
        .text(include_str!("mirror.rs"))
        .text(&digest.to_string()))
}

/// Writes binaries, CNI plugins and images to `folder`, and the list of them last.
pub(super) fn write(
    folder: &Path,
    recipe: &Recipe,
    programs: &Programs,
    images: &[NamedImage],
    progress: &Progress,
) -> Result<()> {
    let mut components = Vec::new();
    let mut add = |url: String, install_path: String, extract| {
        let hash = digest_of(&folder.join(&url))?;
        components.push(Component {
            url: url.parse()?,
            hash,
            install_path: install_path.parse()?,
            extract,
        });
        anyhow::Ok(())
    };
    for sub in ["bin", "images"] {
        fs::create_dir(folder.join(sub))?;
    }
    for name in PROGRAMS {
        let url = format!("bin/{name}");
        copy_file(&programs.path(name)?, &folder.join(&url))?;
        add(url, format!("/run/state/bin/{name}"), false)?;
    }
    write_cni_plugins(programs, &folder.join(CNI_PLUGINS_ARCHIVE))?;
    add(CNI_PLUGINS_ARCHIVE.into(), "/opt/cni/bin".into(), true)?;
    for NamedImage { title, image } in images {
        let url = format!("images/{title}.oci.tar");
        progress.step_blocking(&format!("writing image {}", image.name), || {
            Ok(write_archive(image, &folder.join(&url))?)
        })?;
        add(url, format!("/run/state/images/{title}.oci.tar"), false)?;
    }
    let list = ComponentList::new(recipe.kubernetes.parse()?, components)?;
    fs::write(folder.join(MIRROR_DOCUMENT), list.to_mirror_document())?;
    Ok(())
}

/// Copies one file with its mode; it appears under its name when it is complete.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let copy = || {
        let mut source = File::open(from)?;
        let mode = source.metadata()?.permissions().mode() & 0o777;
        let mut file = NewFile::create(to, Access::Mode(mode))?;
        io::copy(&mut source, &mut file)?;
        file.commit()
    };
    copy().with_context(|| format!("copying {}", from.display()))
}

fn write_cni_plugins(programs: &Programs, archive: &Path) -> Result<()> {
    let mut layer = Layer::new();
    for (name, _) in CNI_PLUGINS {
        layer.file(&format!("/{name}"), 0o755, Content::HostFile(programs.path(name)?))?;
    }
    // Name and time in the gzip header stay empty, so that the bytes depend on the plugins only.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(BufWriter::new(File::create(archive)?), Compression::default());
    layer.write_tar(&mut gzip)?;
    gzip.finish()?.flush()?;
    Ok(())
}

fn digest_of(path: &Path) -> Result<Digest> {
    Digest::of_file(path).with_context(|| format!("reading {}", path.display()))
}

/// Whether every file of `from` is in `to` with the same length; wrong contents are found by their hashes.
fn same_files(from: &Path, to: &Path) -> Result<bool> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let other = to.join(entry.file_name());
        let same = match (entry.metadata()?, fs::metadata(&other)) {
            (here, Ok(there)) if here.is_dir() && there.is_dir() => same_files(&entry.path(), &other)?,
            (here, Ok(there)) => here.is_file() && there.is_file() && here.len() == there.len(),
            (_, Err(_)) => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

const CNI_PLUGINS_ARCHIVE: &str = "cni-plugins.tgz";

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(folder: &Path, text: &str) -> MirrorFolder {
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/kubelet"), text).unwrap();
        fs::write(folder.join(MIRROR_DOCUMENT), text).unwrap();
        MirrorFolder::new(folder.to_owned())
    }

    #[test]
    fn replaces_an_older_mirror_and_repairs_a_damaged_one() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        for text in ["old", "new"] {
            mirror(&root.path().join(text), text).copy_to(&out).unwrap();
            assert_eq!(fs::read_to_string(out.join("bin/kubelet")).unwrap(), text);
        }
        fs::remove_file(out.join("bin/kubelet")).unwrap();
        mirror(&root.path().join("new"), "new").copy_to(&out).unwrap();
        assert!(out.join("bin/kubelet").is_file());
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            3,
            "temporary folders are gone"
        );
    }

    #[test]
    fn leaves_a_folder_alone_that_is_no_mirror() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("home");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("letter"), "").unwrap();
        let err = mirror(&root.path().join("mirror"), "new")
            .copy_to(&out)
            .unwrap_err()
            .to_string();
        assert!(
            err.ends_with("is in the way: it is neither empty nor a mirror"),
            "{err}"
        );
        assert!(out.join("letter").is_file());
    }

    #[test]
    fn cni_plugins_are_packed_the_same_way_each_time() {
        let root = tempfile::tempdir().unwrap();
        let archives = ["a", "b"].map(|run| {
            let folder = root.path().join(run);
            fs::create_dir(&folder).unwrap();
            for (name, _) in CNI_PLUGINS {
                fs::write(folder.join(name), name).unwrap();
            }
            let archive = root.path().join(format!("{run}.tgz"));
            write_cni_plugins(&Programs::new(vec![folder]), &archive).unwrap();
            fs::read(archive).unwrap()
        });
        assert!(archives[0] == archives[1]);
    }
}
