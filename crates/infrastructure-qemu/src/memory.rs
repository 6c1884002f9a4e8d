//! How much memory can still be got: what the machine has, and what the control groups of this process leave of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory that programs can get without swapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) mib: u64,
    /// The control group that leaves no more, if it is not the machine.
    pub(crate) limited_by: Option<PathBuf>,
}

/// None if the kernel does not tell.
pub(crate) fn available() -> Option<Available> {
    available_below(Path::new("/"))
}

/// Machines become children of this process and stay in its control groups.
fn available_below(root: &Path) -> Option<Available> {
    let machine = Available {
        mib: of_machine(root)?,
        limited_by: None,
    };
    let groups = control_groups(root).into_iter().flat_map(|group| group.left(root));
    groups.chain([machine]).min_by_key(|available| available.mib)
}

/// `MemAvailable` of proc_meminfo(5).
fn of_machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

/// Where a hierarchy of control groups is mounted, and where in it this process is.
struct ControlGroup {
    version: Version,
    mounted: PathBuf,
    path: PathBuf,
}

/// The names of files differ (cgroup-v1/memory.rst, cgroup-v2.rst of the kernel's documentation).
#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn limits(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["memory.limit_in_bytes"],
            // Above `high` a group is slowed down until it hardly runs.
            Self::V2 => &["memory.max", "memory.high"],
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// The key in `memory.stat` of what is given back on demand.
    fn reclaimable(self) -> &'static str {
        match self {
            Self::V1 => "total_inactive_file ",
            Self::V2 => "inactive_file ",
        }
    }
}

impl ControlGroup {
    /// What this group and each group above it leaves.
    fn left(&self, root: &Path) -> Vec<Available> {
        let groups = self.path.ancestors().map(|group| self.mounted.join(group));
        let left = groups.filter_map(|group| {
            let folder = below(root, &group);
            let number =
                |file: &str| -> Option<u64> { fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok() };
            // "max" is not a number and means that there is no limit.
            let limit = self.version.limits().iter().filter_map(|file| number(file)).min()?;
            let used = number(self.version.usage())?.saturating_sub(self.reclaimable(&folder));
            Some(Available {
                mib: limit.saturating_sub(used) >> 20,
                limited_by: Some(group),
            })
        });
        left.collect()
    }

    fn reclaimable(&self, folder: &Path) -> u64 {
        let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let key = self.version.reclaimable();
        let value = statistics.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }
}

/// The hierarchies that can limit memory: proc_pid_cgroup(5) says which group, proc_pid_mountinfo(5) where it is.
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match controllers {
            "" => Version::V2,
            list if list.split(',').any(|controller| controller == "memory") => Version::V1,
            _ => return None,
        };
        let (mounted, top) = mounts.lines().find_map(|line| mount(line, version))?;
        // Of a container only its own part may be mounted.
        let path = Path::new(path);
        let path = path.strip_prefix(&top).or(path.strip_prefix("/")).ok()?;
        Some(ControlGroup {
            version,
            mounted,
            path: path.to_owned(),
        })
    };
    memberships.lines().filter_map(group).collect()
}

/// The mount point and the group that is mounted there, if this line is about such a hierarchy.
fn mount(line: &str, version: Version) -> Option<(PathBuf, PathBuf)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (top, mounted) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (file_system, options) = (kind.next()?, kind.nth(1)?);
    let fits = match version {
        Version::V2 => file_system == "cgroup2",
        Version::V1 => file_system == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    fits.then(|| (mounted.into(), top.into()))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";

    /// A machine with 10000 MiB whose control groups have these files.
    fn machine(membership: &str, mount: &str, files: &[(&str, String)]) -> Option<Available> {
        let root = tempfile::tempdir().unwrap();
        let meminfo = format!("MemTotal: 16000000 kB\nMemAvailable: {} kB\n", 10_000 * 1024);
        let others = "23 1 0:20 / / rw - ext4 /dev/vda rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        for (file, content) in [
            ("proc/meminfo", meminfo),
            ("proc/self/cgroup", format!("9:cpu:/elsewhere\n{membership}\n")),
            ("proc/self/mountinfo", format!("{others}{mount}\n")),
        ]
        .iter()
        .chain(files)
        {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        available_below(root.path())
    }

    fn check(membership: &str, mount: &str, files: &[(&str, String)], mib: u64, limited_by: Option<&str>) {
        let expected = Available {
            mib,
            limited_by: limited_by.map(PathBuf::from),
        };
        assert_eq!(machine(membership, mount, files), Some(expected), "{files:?}");
    }

    #[test]
    fn without_a_limit_the_machine_decides() {
        check("0::/user.slice", V2, &[], 10_000, None);
        let unlimited = [
            ("sys/fs/cgroup/user.slice/memory.max", "max\n".to_owned()),
            ("sys/fs/cgroup/user.slice/memory.current", format!("{}\n", 500 * MIB)),
        ];
        check("0::/user.slice", V2, &unlimited, 10_000, None);
        // What version 1 calls no limit.
        let unlimited = [
            (
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "9223372036854771712".to_owned(),
            ),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "0".to_owned()),
        ];
        check("4:memory:/a", V1, &unlimited, 10_000, None);
        assert!(available().is_some());
    }

    #[test]
    fn the_tightest_group_up_the_tree_decides() {
        for file in ["memory.max", "memory.high"] {
            let limited = [
                ("sys/fs/cgroup/a/b/memory.max".to_owned(), "max".to_owned()),
                ("sys/fs/cgroup/a/b/memory.current".to_owned(), "0".to_owned()),
                (format!("sys/fs/cgroup/a/{file}"), (3072 * MIB).to_string()),
                ("sys/fs/cgroup/a/memory.current".to_owned(), (1000 * MIB).to_string()),
                (
                    "sys/fs/cgroup/a/memory.stat".to_owned(),
                    format!("anon 1\ninactive_file {}\n", 400 * MIB),
                ),
            ];
            let limited: Vec<_> = limited
                .iter()
                .map(|(file, content)| (file.as_str(), content.clone()))
                .collect();
            check("0::/a/b", V2, &limited, 3072 - 600, Some("/sys/fs/cgroup/a"));
        }
    }

    #[test]
    fn version_1_counts_too() {
        let limited = [
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", (3072 * MIB).to_string()),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", (72 * MIB).to_string()),
        ];
        check(
            "4:cpu,memory:/a/b\n0::/",
            V1,
            &limited,
            3000,
            Some("/sys/fs/cgroup/memory/a"),
        );
    }

    /// Of the host's tree it sees its own part, and may be told the path in the whole tree.
    #[test]
    fn a_container_is_limited_by_its_own_group() {
        let limited = [
            ("sys/fs/cgroup/memory.max", (3072 * MIB).to_string()),
            ("sys/fs/cgroup/memory.current", "0".to_owned()),
        ];
        check("0::/", V2, &limited, 3072, Some("/sys/fs/cgroup/"));
        let part = V2.replace(" / /sys", " /docker/x /sys");
        check("0::/docker/x", &part, &limited, 3072, Some("/sys/fs/cgroup/"));
    }

    #[test]
    fn more_than_the_limit_in_use_leaves_nothing() {
        let limited = [
            ("sys/fs/cgroup/a/memory.max", (100 * MIB).to_string()),
            ("sys/fs/cgroup/a/memory.current", (200 * MIB).to_string()),
        ];
        check("0::/a", V2, &limited, 0, Some("/sys/fs/cgroup/a"));
    }
}
