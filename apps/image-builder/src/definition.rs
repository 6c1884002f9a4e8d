//! Reads the folder `images/`, which defines an image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::glob::Glob;

/// The parsed lists of `images/`.
pub(crate) struct Definition {
    pub(crate) folder: PathBuf,
    pub(crate) node_packages: Vec<String>,
    pub(crate) tools_packages: Vec<String>,
    pub(crate) keep: Vec<Glob>,
    pub(crate) modules: Vec<Glob>,
    pub(crate) modules_initramfs: Vec<Glob>,
    pub(crate) modules_early: Vec<Glob>,
    pub(crate) kernel_command_line: Vec<String>,
}

impl Definition {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let lines = |name| load_lines(&folder.join(name));
        let globs = |name| load_globs(&folder.join(name));
        Ok(Self {
            folder: folder.to_owned(),
            node_packages: lines("node.packages")?,
            tools_packages: lines("tools.packages")?,
            keep: globs("root.keep")?,
            modules: globs("modules")?,
            modules_initramfs: globs("modules.initramfs")?,
            modules_early: globs("modules.early")?,
            kernel_command_line: lines("kernel-command-line")?,
        })
    }

    /// The folder whose files are copied over those of the packages.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.join("packages.lock")
    }
}

/// The globs in a file, one a line.
pub(crate) fn load_globs(path: &Path) -> Result<Vec<Glob>> {
    Ok(load_lines(path)?.iter().map(|line| Glob::new(line)).collect())
}

/// The lines that are neither empty nor comments.
fn load_lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Lock, Purpose};

    fn ours() -> Definition {
        Definition::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images")).unwrap()
    }

    #[test]
    fn command_line_closes_the_side_doors() {
        let command_line = ours().kernel_command_line;
        for option in [
            "lockdown=confidentiality",
            "module.sig_enforce=1",
            "sysctl.kernel.sysrq=0",
            "efi=noruntime",
            "initcall_blacklist=virtio_console_init,virtio_fs_init",
            "random.trust_bootloader=off",
            "systemd.import_credentials=no",
            "systemd.gpt_auto=no",
            "systemd.swap=no",
            "systemd.crash_action=poweroff",
            "systemd.crash_shell=no",
        ] {
            let (name, _) = option.split_once('=').unwrap();
            let given: Vec<_> = command_line
                .iter()
                .filter(|given| given.starts_with(&format!("{name}=")))
                .collect();
            assert_eq!(given, [option]);
        }
    }

    #[test]
    fn lock_covers_the_listed_packages() {
        let ours = ours();
        let lock: Lock = fs::read_to_string(ours.lock_file()).unwrap().parse().unwrap();
        assert!(ours.node_packages.iter().all(|name| lock.contains(Purpose::Node, name)));
        assert!(
            ours.tools_packages
                .iter()
                .all(|name| lock.contains(Purpose::Tools, name))
        );
    }

    /// Times in our units and in systemd's configuration: `Timeout…Sec=` and `--timeout=`.
    fn limits_of_units() -> Vec<(PathBuf, u64)> {
        let mut limits = Vec::new();
        let mut folders = vec![ours().overlay().join("usr/lib/systemd")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_dir() {
                    folders.push(path);
                    continue;
                }
                // A link leads to a unit that is met here too, or to one of systemd's.
                if kind.is_symlink() {
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let words = text.split_whitespace().filter_map(|word| word.split_once('='));
                let names_a_limit =
                    |name: &str| name == "--timeout" || name.contains("Timeout") && name.ends_with("Sec");
                for (_, value) in words.filter(|(name, _)| names_a_limit(name)) {
                    let seconds = value.trim_end_matches('s').parse();
                    limits.push((
                        path.clone(),
                        seconds.unwrap_or_else(|_| panic!("{}: {value}", path.display())),
                    ));
                }
            }
        }
        limits
    }

    #[test]
    fn limits_of_units_bear_a_machine_that_is_five_times_slower() {
        let limits = limits_of_units();
        assert!(limits.len() >= 6, "{limits:?}");
        for (path, seconds) in limits {
            assert!(seconds >= 120, "{} gives up after {seconds} s", path.display());
        }
    }

    #[test]
    fn programs_wait_for_the_devices_they_open() {
        const TPM: &str = "dev-tpmrm0.device";
        for (name, devices) in [
            (
                "constellation-bootstrapper",
                &[TPM, "sys-subsystem-net-devices-private0.device"][..],
            ),
            ("constellation-attestation", &[TPM]),
        ] {
            let unit = format!("usr/lib/systemd/system/{name}.service");
            let unit = fs::read_to_string(ours().overlay().join(unit)).unwrap();
            for relation in ["Requires=", "After="] {
                let named: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix(relation)).collect();
                for device in devices {
                    assert!(
                        named.iter().any(|units| units.contains(device)),
                        "{name}: {relation}{device}: {named:?}"
                    );
                }
            }
        }
    }

    /// An escape from a container can write to the state disk, and that outlives a reboot.
    #[test]
    fn no_program_of_the_state_disk_takes_the_place_of_a_measured_one() {
        let units = ours().overlay().join("usr/lib/systemd/system");
        let mut paths = 0;
        for unit in fs::read_dir(units).unwrap().map(|entry| entry.unwrap().path()) {
            let text = fs::read_to_string(&unit).unwrap_or_default();
            let variables = text.lines().filter_map(|line| line.strip_prefix("Environment="));
            for folders in variables.filter_map(|variable| variable.trim_matches('"').strip_prefix("PATH=")) {
                paths += 1;
                let measured = |folder: &&str| folder.starts_with("/usr/");
                let rest: Vec<_> = folders.split(':').skip_while(measured).collect();
                assert!(!rest.iter().any(measured), "{}: {folders}", unit.display());
            }
        }
        assert_eq!(paths, 2);
    }

    #[test]
    fn modules_of_the_initramfs_are_not_those_of_shared_devices() {
        let ours = ours();
        let all = ours
            .modules
            .iter()
            .chain(&ours.modules_initramfs)
            .chain(&ours.modules_early);
        for pattern in all {
            for module in [
                "drivers/firmware/qemu_fw_cfg.ko",
                "drivers/net/netconsole.ko",
                "drivers/usb/storage/usb-storage.ko",
                "fs/efivarfs/efivarfs.ko",
                "fs/isofs/isofs.ko",
                "net/vmw_vsock/vsock.ko",
            ] {
                assert!(!pattern.matches(module), "{} lets {module} in", pattern.as_str());
            }
        }
    }
}
