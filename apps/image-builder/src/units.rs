//! The units of the assembled root file system, Debian's and ours.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::tree;

const UNITS: &str = "usr/lib/systemd/system";
/// Where systemd looks for a program without a folder (systemd.service(5), "Command lines").
const SEARCH_PATH: [&str; 2] = ["usr/bin", "usr/sbin"];
/// Comes to a node with the list of components.
const KUBELET: &str = "/run/state/bin/kubelet";

/// Makes sure that every program a unit runs is in the tree: otherwise a missing line of `root.keep`, or a unit that Debian changed,
/// would show on a node only.
pub(crate) fn check(root: &Path) -> Result<()> {
    let folder = root.join(UNITS);
    for path in tree::walk(&folder)? {
        let unit = folder.join(&path);
        if fs::symlink_metadata(&unit)?.is_file() {
            let text = fs::read_to_string(&unit).with_context(|| format!("cannot read {}", unit.display()))?;
            for program in programs(&text) {
                ensure!(
                    is_there(root, program)?,
                    "{path} starts {program}, which is not in the image"
                );
            }
        }
    }
    Ok(())
}

fn programs(unit: &str) -> impl Iterator<Item = &str> {
    let settings = unit.lines().filter_map(|line| line.split_once('='));
    let commands = settings.filter(|(key, _)| key.starts_with("Exec"));
    commands.filter_map(|(_, command)| {
        // What these signs change is in systemd.service(5), "Command lines".
        let command = command.trim_start_matches(['@', '-', ':', '+', '!', '|']);
        command.split_whitespace().next()
    })
}

fn is_there(root: &Path, program: &str) -> Result<bool> {
    if program == KUBELET {
        return Ok(true);
    }
    let paths = match program.strip_prefix('/') {
        Some(path) => vec![path.to_owned()],
        None => SEARCH_PATH.map(|folder| format!("{folder}/{program}")).into(),
    };
    for path in paths {
        if let Some(file) = tree::resolve(root, &path)?
            && root.join(file).is_file()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn check_command(command: &str) -> bool {
        let root = tempfile::tempdir().unwrap();
        let unit = format!("[Service]\nExecStart=\n# ExecStart=/none\n{command}\n");
        tree::write_file(&root.path().join(UNITS).join("a.service"), unit).unwrap();
        tree::write_file(&root.path().join("usr/sbin/nft"), "").unwrap();
        symlink("usr/sbin", root.path().join("sbin")).unwrap();
        symlink("nft", root.path().join("usr/sbin/link")).unwrap();
        check(root.path()).is_ok()
    }

    #[test]
    fn programs_of_units_are_in_the_tree() {
        for command in [
            "ExecStart=-/usr/sbin/nft --file x",
            "ExecStart=/sbin/nft",
            "ExecStart=/sbin/link",
            "ExecStop=nft",
            "ExecStart=/run/state/bin/kubelet",
        ] {
            assert!(check_command(command), "{command}");
        }
    }

    #[test]
    fn a_program_that_is_not_in_the_tree_is_refused() {
        for command in [
            "ExecStart=/usr/bin/nft",
            "ExecStartPre=!!/usr/bin/none x",
            "ExecStop=/sbin",
            "ExecReload=none",
        ] {
            assert!(!check_command(command), "{command}");
        }
    }
}
