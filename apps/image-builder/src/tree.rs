//! The root file system as a folder: which of the packages' files are kept, and what is copied over them.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use goblin::elf::Elf;

use crate::glob::Glob;

/// Folders the dynamic linker searches, and the folder of systemd's own libraries.
const LIBRARY_FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd"];

/// Shells, interpreters, logins, debuggers and package managers.
const PROMPTS: [&str; 25] = [
    "agetty",
    "apt",
    "apt-get",
    "ash",
    "awk",
    "bash",
    "busybox",
    "dash",
    "dpkg",
    "gdb",
    "getty",
    "kexec",
    "login",
    "mawk",
    "openssl",
    "perl",
    "python3",
    "run0",
    "sh",
    "sshd",
    "strace",
    "su",
    "sudo",
    "sulogin",
    "systemd-sulogin-shell",
];

/// The most links that are followed, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// All paths below a folder, relative to it.
pub(crate) fn walk(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = VecDeque::from([String::new()]);
    while let Some(current) = folders.pop_front() {
        let entries =
            fs::read_dir(folder.join(&current)).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry
                .file_name()
                .into_string()
                .map_err(|name| anyhow!("{name:?} is not UTF-8"))?;
            let path = if current.is_empty() {
                name
            } else {
                format!("{current}/{name}")
            };
            if entry.file_type()?.is_dir() {
                folders.push_back(path.clone());
            }
            paths.push(path);
        }
    }
    Ok(paths)
}

pub(crate) fn is_executable(metadata: &Metadata) -> bool {
    metadata.mode() & 0o111 != 0
}

/// Copies the files that match the patterns to another folder, with link targets and shared libraries.
///
/// # Errors
/// When a pattern matches nothing, or a library is missing.
pub(crate) fn keep(patterns: &[Glob], from: &Path, to: &Path) -> Result<()> {
    let paths = walk(from)?;
    let mut wanted = BTreeSet::new();
    let mut useless = Vec::new();
    for pattern in patterns {
        let matches: Vec<_> = paths.iter().filter(|path| pattern.matches(path)).cloned().collect();
        if matches.is_empty() {
            useless.push(pattern.as_str());
        }
        wanted.extend(matches);
    }
    ensure!(
        useless.is_empty(),
        "no file of the packages matches {}",
        useless.join(", ")
    );
    keep_paths(wanted, from, to)
}

/// Copies the named paths, everything they link to and every library they need.
pub(crate) fn keep_paths(wanted: impl IntoIterator<Item = String>, from: &Path, to: &Path) -> Result<()> {
    let mut wanted: VecDeque<_> = wanted.into_iter().collect();
    let mut kept = BTreeSet::new();
    while let Some(path) = wanted.pop_front() {
        if !kept.insert(path.clone()) {
            continue;
        }
        let source = from.join(&path);
        let metadata = fs::symlink_metadata(&source).with_context(|| format!("cannot read {}", source.display()))?;
        if metadata.is_symlink() {
            wanted.extend(resolve(from, &path)?);
            copy_link(&source, &to.join(&path))?;
        } else if metadata.is_dir() {
            fs::create_dir_all(to.join(&path))?;
        } else if !is_script(&source)? {
            wanted.extend(libraries(from, &source)?);
            let mode = if is_executable(&metadata) { 0o755 } else { 0o644 };
            copy_file(&source, &to.join(&path), mode)?;
        }
    }
    Ok(())
}

/// Copies one of our folders over the tree, replacing existing files.
pub(crate) fn overlay(from: &Path, to: &Path) -> Result<()> {
    for path in walk(from)? {
        let (source, target) = (from.join(&path), to.join(&path));
        let metadata = fs::symlink_metadata(&source)?;
        if metadata.is_dir() {
            fs::create_dir_all(&target)?;
        } else if metadata.is_symlink() {
            copy_link(&source, &target)?;
        } else {
            let mode = if is_executable(&metadata) { 0o755 } else { 0o644 };
            copy_file(&source, &target, mode)?;
        }
    }
    Ok(())
}

/// Copies a file and creates its folders. An existing file is replaced.
pub(crate) fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let copy = || -> io::Result<()> {
        make_room(to)?;
        fs::copy(from, to)?;
        fs::set_permissions(to, Permissions::from_mode(mode))
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Writes a file and creates its folders. An existing file is replaced.
pub(crate) fn write_file(to: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let write = || -> io::Result<()> {
        make_room(to)?;
        fs::write(to, content)?;
        fs::set_permissions(to, Permissions::from_mode(0o644))
    };
    write().with_context(|| format!("cannot write {}", to.display()))
}

/// Removes links whose target was not kept, and restores the modes of folders that the build machine's umask may have narrowed.
pub(crate) fn finish(root: &Path) -> Result<()> {
    for path in walk(root)? {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full)?;
        if metadata.is_dir() {
            fs::set_permissions(&full, Permissions::from_mode(0o755))?;
        } else if metadata.is_symlink() && is_dangling(root, &path)? {
            fs::remove_file(&full)?;
        }
    }
    Ok(fs::set_permissions(root, Permissions::from_mode(0o755))?)
}

/// A link into a folder that exists only on a running system does not count as dangling.
fn is_dangling(root: &Path, path: &str) -> Result<bool> {
    let target = fs::read_link(root.join(path))?;
    let at_run_time = ["/run", "/proc", "/dev", "../proc", "../run"];
    if at_run_time.iter().any(|folder| target.starts_with(folder)) {
        return Ok(false);
    }
    Ok(resolve(root, path)?.is_none())
}

fn make_room(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy_link(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> io::Result<()> {
        make_room(to)?;
        symlink(fs::read_link(from)?, to)
    };
    copy().with_context(|| format!("cannot copy the link {}", from.display()))
}

fn is_script(file: &Path) -> Result<bool> {
    let mut start = Vec::new();
    fs::File::open(file)?.take(2).read_to_end(&mut start)?;
    Ok(start == b"#!")
}

/// Makes sure that one of our programs needs no libraries, because the initramfs has none.
pub(crate) fn check_static(file: &Path) -> Result<()> {
    let bytes = fs::read(file)?;
    let elf = Elf::parse(&bytes).with_context(|| format!("{} is not a program", file.display()))?;
    ensure!(elf.interpreter.is_none(), "{} is not statically linked", file.display());
    Ok(())
}

/// Makes sure that nothing in the tree offers a prompt or runs commands that it is given.
///
/// People write the list of kept files; these are the files that they must not add.
pub(crate) fn check_closed(root: &Path) -> Result<()> {
    for path in walk(root)? {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let is_program = matches!(folder, "usr/bin" | "usr/sbin" | "usr/lib/systemd");
        ensure!(
            !(is_program && PROMPTS.contains(&name)),
            "{path} must not be in the image"
        );
        ensure!(
            !folder.ends_with("-generators"),
            "{path} would create units from the host's data"
        );
    }
    Ok(())
}

/// Resolves a path inside `root` to one without symbolic links, or `None` if it leads nowhere.
pub(crate) fn resolve(root: &Path, path: &str) -> Result<Option<String>> {
    let mut rest: VecDeque<String> = path.split('/').map(str::to_owned).collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(component) = rest.pop_front() {
        match component.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            name => done.push(name),
        }
        let Ok(metadata) = fs::symlink_metadata(root.join(&done)) else {
            return Ok(None);
        };
        if metadata.is_symlink() {
            links += 1;
            ensure!(links <= MAX_LINKS, "{path} has too many links");
            let target = fs::read_link(root.join(&done))?;
            done.pop();
            if target.is_absolute() {
                done = PathBuf::new();
            }
            let components = target.components().filter_map(|component| match component {
                Component::ParentDir => Some("..".to_owned()),
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            });
            for component in components.collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(component);
            }
        }
    }
    Ok(Some(done.to_string_lossy().into_owned()))
}

/// The libraries and the interpreter that an ELF file names, as paths inside `root`.
fn libraries(root: &Path, file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file)?;
    if !bytes.starts_with(goblin::elf::header::ELFMAG) {
        return Ok(Vec::new());
    }
    let elf = Elf::parse(&bytes).with_context(|| format!("{} is not an ELF file", file.display()))?;
    let mut paths = Vec::new();
    for library in &elf.libraries {
        let path = LIBRARY_FOLDERS
            .iter()
            .map(|folder| format!("{folder}/{library}"))
            .find(|path| fs::symlink_metadata(root.join(path)).is_ok());
        paths.push(path.ok_or_else(|| anyhow!("{} needs {library}, which is in no package", file.display()))?);
    }
    if let Some(interpreter) = elf.interpreter {
        // The name itself is a link, which is also needed.
        let (folder, name) = interpreter.rsplit_once('/').unwrap_or(("", interpreter));
        match resolve(root, folder)? {
            Some(folder) => paths.push(format!("{folder}/{name}")),
            None => bail!("{} needs {interpreter}, which is in no package", file.display()),
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            write_file(&root.path().join(path), content).unwrap();
        }
        for (path, target) in links {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            symlink(target, root.path().join(path)).unwrap();
        }
        root
    }

    fn check_keep(root: &Path, patterns: &[&str]) -> Result<Vec<String>> {
        let to = tempfile::tempdir().unwrap();
        let patterns: Vec<_> = patterns.iter().map(|pattern| Glob::new(pattern)).collect();
        keep(&patterns, root, to.path())?;
        let mut kept = walk(to.path())?;
        kept.sort();
        Ok(kept)
    }

    #[test]
    fn only_named_files_are_kept() {
        let root = tree(&[("a/b", "x"), ("a/c", "x")], &[]);
        assert_eq!(check_keep(root.path(), &["a/b"]).unwrap(), ["a", "a/b"]);
    }

    #[test]
    fn scripts_are_never_kept() {
        let root = tree(&[("a", "#!/bin/sh\n"), ("b", "x")], &[]);
        assert_eq!(check_keep(root.path(), &["a", "b"]).unwrap(), ["b"]);
    }

    #[test]
    fn shells_and_generators_are_refused() {
        for path in [
            "usr/bin/sh",
            "usr/sbin/agetty",
            "usr/lib/systemd/system-generators/systemd-gpt-auto-generator",
        ] {
            let root = tree(&[(path, "x")], &[]);
            let error = check_closed(root.path()).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_shell_behind_another_name_of_the_folder_is_refused() {
        let root = tree(&[], &[("bin", "usr/bin"), ("usr/bin/sh", "systemctl")]);
        check_closed(root.path()).unwrap_err();
    }

    #[test]
    fn link_targets_come_along() {
        let root = tree(
            &[("usr/lib/x/real", "x")],
            &[("lib", "usr/lib"), ("name", "/lib/x/real")],
        );
        assert_eq!(
            check_keep(root.path(), &["name"]).unwrap(),
            ["name", "usr", "usr/lib", "usr/lib/x", "usr/lib/x/real"]
        );
    }

    #[test]
    fn pattern_without_match_is_an_error() {
        let root = tree(&[("a", "x")], &[]);
        let error = check_keep(root.path(), &["a", "gone/*"]).unwrap_err();
        assert!(error.to_string().contains("gone/*"));
    }

    #[test]
    fn dangling_links_are_removed_at_the_end() {
        let root = tree(
            &[("etc/a", "x")],
            &[("b", "gone"), ("c", "/etc/a"), ("d", "/run/later")],
        );
        finish(root.path()).unwrap();
        let mut left = walk(root.path()).unwrap();
        left.sort();
        assert_eq!(left, ["c", "d", "etc", "etc/a"]);
    }

    #[test]
    fn links_cannot_lead_out_of_the_tree() {
        let root = tree(&[("etc/passwd", "x")], &[("up", "../../../../etc/passwd")]);
        assert_eq!(resolve(root.path(), "up").unwrap().as_deref(), Some("etc/passwd"));
    }

    #[test]
    fn circular_links_are_an_error() {
        let root = tree(&[], &[("a", "b"), ("b", "a")]);
        resolve(root.path(), "a").unwrap_err();
    }
}
