//! The packet filter tools that kube-proxy and flannel call, from the Debian packages that nodes are made of.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use oci_archive::{Content, Layer};

/// The usual names of iptables with nftables behind them.
const IPTABLES: [&str; 6] = [
    "iptables",
    "iptables-restore",
    "iptables-save",
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
];

/// The layer with what `upstream/packet-filter.keep` chose, which is in `folder`.
pub(super) fn layer(folder: &Path) -> Result<Layer> {
    let mut layer = Layer::new();
    add(&mut layer, folder, "")?;
    for name in IPTABLES {
        // Debian makes these links when it installs the package.
        layer.symlink(&format!("/usr/sbin/{name}"), "xtables-nft-multi")?;
    }
    Ok(layer)
}

fn add(layer: &mut Layer, folder: &Path, at: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let file = entry.path();
        let name = file.file_name().and_then(|name| name.to_str());
        let path = format!("{at}/{}", name.context("a package has a path that is not UTF-8")?);
        let metadata = entry.metadata()?;
        if metadata.is_symlink() {
            let target = fs::read_link(&file)?;
            layer.symlink(&path, target.to_str().context("a link's target is not UTF-8")?)?;
        } else if metadata.is_dir() {
            add(layer, &file, &path)?;
        } else {
            let mode = metadata.permissions().mode() & 0o755;
            layer.file(&path, mode, Content::HostFile(file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tar(make: impl FnOnce(&Path)) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let mut tar = Vec::new();
        layer(folder.path()).unwrap().write_tar(&mut tar).unwrap();
        tar
    }

    #[test]
    fn only_names_modes_and_contents_of_the_files_decide_the_bytes() {
        let first = |root: &Path| {
            fs::create_dir_all(root.join("usr/sbin")).unwrap();
            fs::write(root.join("usr/sbin/nft"), "nft").unwrap();
            fs::write(root.join("usr/sbin/xtables-nft-multi"), "xtables").unwrap();
            symlink("usr/lib", root.join("lib")).unwrap();
        };
        let in_another_order = |root: &Path| {
            symlink("usr/lib", root.join("lib")).unwrap();
            fs::create_dir_all(root.join("usr/sbin")).unwrap();
            fs::write(root.join("usr/sbin/xtables-nft-multi"), "xtables").unwrap();
            let nft = fs::File::create(root.join("usr/sbin/nft")).unwrap();
            fs::write(root.join("usr/sbin/nft"), "nft").unwrap();
            nft.set_modified(std::time::UNIX_EPOCH).unwrap();
            fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o700)).unwrap();
        };
        let changed = |root: &Path| {
            first(root);
            fs::write(root.join("usr/sbin/nft"), "nf7").unwrap();
        };
        assert_eq!(tar(first), tar(in_another_order));
        assert_ne!(tar(first), tar(changed));
    }
}
