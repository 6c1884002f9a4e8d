//! The units of `images/root` do what they say.
//!
//! 1. A unit's programs are in the image: a line of `images/root.keep` (of which the image build makes sure that it is a file of the
//!    packages), a file of `images/root`, a program of ours, or one that the list of components brings.
//! 2. A unit says when it starts: links in `.wants` and `.requires` and the section `[Install]` say the same, and a service
//!    without `[Install]` says `# Started by …`.
//! 3. Links lead to a unit that exists. The units that lead to `/dev/null` are those that `docs/image.md` lists under "Masked units".

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use crate::workspace::NODE_PROGRAMS;

const UNITS: &str = "usr/lib/systemd/system";
/// Programs that the component-installer puts onto the node, and not the image.
const COMPONENTS: [&str; 1] = ["run/state/bin/kubelet"];
const MASKED: &str = "Masked units";

pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"));
    let image = Image {
        overlay: root.join("images/root"),
        kept: read("images/root.keep")?.lines().map(str::to_owned).collect(),
    };
    let documented = masked_units(&read("docs/image.md")?);
    Ok([
        image.check_programs()?,
        image.check_enabling()?,
        image.check_links()?,
        image.check_masks(&documented)?,
    ]
    .concat())
}

/// What is known of an image without building it.
struct Image {
    overlay: PathBuf,
    kept: BTreeSet<String>,
}

impl Image {
    fn check_programs(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (name, unit) in self.units()? {
            for program in unit.programs() {
                if !self.has_program(program) {
                    problems.push(format!("{name} starts {program}, which is not in the image"));
                }
            }
        }
        Ok(problems)
    }

    fn has_program(&self, program: &str) -> bool {
        let Some(path) = program.strip_prefix('/') else {
            return false;
        };
        let ours = path.strip_prefix("usr/bin/");
        self.has(path) || COMPONENTS.contains(&path) || ours.is_some_and(|name| NODE_PROGRAMS.contains(&name))
    }

    fn has(&self, path: &str) -> bool {
        self.kept.contains(path) || self.overlay.join(path).exists()
    }

    fn check_enabling(&self) -> Result<Vec<String>> {
        let links = self.enabling_links()?;
        let mut problems = Vec::new();
        for (name, unit) in self.units()? {
            // A drop-in changes a unit, it does not start one.
            if name.contains('/') {
                continue;
            }
            let linked: BTreeSet<_> = links
                .iter()
                .filter(|(_, to)| *to == name)
                .map(|(from, _)| from.clone())
                .collect();
            let said = unit.enabled_by();
            for from in linked.difference(&said) {
                problems.push(format!("{name} is linked in {from} and does not say so in [Install]"));
            }
            for from in said.difference(&linked) {
                problems.push(format!(
                    "{name} says in [Install] that it is linked in {from}, and is not"
                ));
            }
            if said.is_empty() && name.ends_with(".service") && !unit.text.contains("# Started by ") {
                problems.push(format!("{name} has neither [Install] nor a comment \"Started by\""));
            }
        }
        Ok(problems)
    }

    /// Folder of links, such as `multi-user.target.wants`, and name of the unit that is linked there.
    fn enabling_links(&self) -> Result<Vec<(String, String)>> {
        let mut links = Vec::new();
        for path in self.entries()? {
            if let Some((folder, name)) = path.split_once('/')
                && (folder.ends_with(".wants") || folder.ends_with(".requires"))
            {
                links.push((folder.to_owned(), name.to_owned()));
            }
        }
        Ok(links)
    }

    fn check_links(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (path, target) in self.links()? {
            let folder = Path::new(UNITS).join(&path);
            let target = match target.strip_prefix("..") {
                Ok(target) => Path::new(UNITS).join(target),
                Err(_) => folder.parent().unwrap_or(Path::new("")).join(&target),
            };
            if target != Path::new("/dev/null") && !self.has(&target.to_string_lossy()) {
                problems.push(format!(
                    "{path} leads to {}, which is not in the image",
                    target.display()
                ));
            }
        }
        Ok(problems)
    }

    fn check_masks(&self, documented: &BTreeSet<String>) -> Result<Vec<String>> {
        let links = self.links()?;
        let masked = links.into_iter().filter(|(_, target)| target == Path::new("/dev/null"));
        let masked: BTreeSet<_> = masked.map(|(path, _)| path).collect();
        let missing = masked
            .difference(documented)
            .map(|name| format!("docs/image.md does not list {name} under \"{MASKED}\""));
        let wrong = documented
            .difference(&masked)
            .map(|name| format!("docs/image.md lists {name} under \"{MASKED}\", and images/root does not mask it"));
        Ok(missing.chain(wrong).collect())
    }

    /// Our units and drop-ins, by their paths in the folder of units.
    fn units(&self) -> Result<BTreeMap<String, Unit>> {
        let mut units = BTreeMap::new();
        for path in self.entries()? {
            let file = self.overlay.join(UNITS).join(&path);
            if file.symlink_metadata()?.is_file() {
                let text = fs::read_to_string(&file).with_context(|| format!("reading {path}"))?;
                units.insert(path, Unit { text });
            }
        }
        Ok(units)
    }

    fn links(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut links = Vec::new();
        for path in self.entries()? {
            if let Ok(target) = fs::read_link(self.overlay.join(UNITS).join(&path)) {
                links.push((path, target));
            }
        }
        Ok(links)
    }

    /// Files and links in the folder of units and in the folders in it, which have none below.
    fn entries(&self) -> Result<BTreeSet<String>> {
        let units = self.overlay.join(UNITS);
        let list = |folder: &Path| -> Result<Vec<String>> {
            let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        let mut entries = BTreeSet::new();
        for name in list(&units)? {
            if units.join(&name).symlink_metadata()?.is_dir() {
                entries.extend(
                    list(&units.join(&name))?
                        .into_iter()
                        .map(|below| format!("{name}/{below}")),
                );
            } else {
                entries.insert(name);
            }
        }
        Ok(entries)
    }
}

/// A unit file (systemd.syntax(7)).
struct Unit {
    text: String,
}

impl Unit {
    /// The programs of all `Exec…=` lines.
    fn programs(&self) -> impl Iterator<Item = &str> {
        let commands = self.values().filter(|(key, _)| key.starts_with("Exec"));
        commands.filter_map(|(_, command)| {
            // What these signs change is in systemd.service(5), "Command lines".
            let command = command.trim_start_matches(['@', '-', ':', '+', '!', '|']);
            command.split_whitespace().next()
        })
    }

    /// Folders that `[Install]` wants a link in.
    fn enabled_by(&self) -> BTreeSet<String> {
        let folders = self.values().flat_map(|(key, units)| {
            let suffix = match key {
                "WantedBy" => Some(".wants"),
                "RequiredBy" => Some(".requires"),
                _ => None,
            };
            suffix
                .into_iter()
                .flat_map(move |suffix| units.split_whitespace().map(move |unit| format!("{unit}{suffix}")))
        });
        folders.collect()
    }

    fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.text.lines().filter(|line| !line.starts_with(['#', ';']));
        lines.filter_map(|line| line.split_once('='))
    }
}

/// The units in the section about masked units.
fn masked_units(document: &str) -> BTreeSet<String> {
    let mut units = BTreeSet::new();
    let (mut heading, mut is_heading) = (String::new(), false);
    for event in Parser::new_ext(document, pulldown_cmark::Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                heading.clear();
                is_heading = true;
            }
            Event::End(TagEnd::Heading(_)) => is_heading = false,
            Event::Text(text) if is_heading => heading.push_str(&text),
            Event::Code(span) if heading == MASKED && is_unit(&span) => {
                units.insert(span.into_string());
            }
            _ => {}
        }
    }
    units
}

fn is_unit(name: &str) -> bool {
    let kinds = ["mount", "path", "service", "slice", "socket", "target", "timer"];
    let kind = name.rsplit_once('.').map(|(_, kind)| kind);
    !name.contains('/') && kind.is_some_and(|kind| kinds.contains(&kind))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// An image with these units; `->` makes a link.
    fn image(kept: &[&str], units: &[(&str, &str)]) -> (tempfile::TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in units {
            let path = folder.path().join(UNITS).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, content).unwrap(),
            }
        }
        let image = Image {
            overlay: folder.path().to_owned(),
            kept: kept.iter().map(|&line| line.to_owned()).collect(),
        };
        (folder, image)
    }

    #[test]
    fn a_program_that_is_not_in_the_image_is_found() {
        let check = |kept: &[&str], command: &str| {
            let (_folder, image) = image(
                kept,
                &[("a.service", &format!("[Service]\n# ExecStart=/none\n{command}\n"))],
            );
            image.check_programs().unwrap()
        };
        assert_eq!(check(&["usr/sbin/nft"], "ExecStart=-/usr/sbin/nft --file x"), [""; 0]);
        assert_eq!(check(&["usr/sbin/*"], "ExecStart=/usr/sbin/nft").len(), 1);
        assert_eq!(check(&[], "ExecStartPre=/usr/sbin/nft").len(), 1);
        assert_eq!(check(&[], "ExecStop=nft").len(), 1);
        assert_eq!(check(&[], "ExecStart="), [""; 0]);
        assert_eq!(check(&[], "ExecStart=/usr/bin/bootstrapper"), [""; 0]);
        assert_eq!(check(&[], "ExecStart=/run/state/bin/kubelet"), [""; 0]);
    }

    #[test]
    fn links_and_install_sections_say_the_same() {
        let check = |units: &[(&str, &str)]| {
            let (_folder, image) = image(&[], units);
            image.check_enabling().unwrap().len()
        };
        let (wanted, link) = (
            "[Install]\nWantedBy=b.target\n",
            ("b.target.wants/a.service", "-> ../a.service"),
        );
        assert_eq!(check(&[("a.service", wanted), link]), 0);
        assert_eq!(check(&[("a.service", wanted)]), 1);
        assert_eq!(check(&[("a.service", "# Started by b.path."), link]), 1);
        assert_eq!(check(&[("a.service", "# Started by b.path.")]), 0);
        assert_eq!(check(&[("a.service", "")]), 1);
        assert_eq!(check(&[("a.service", "[Install]\nRequiredBy=b.target\n"), link]), 2);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let check = |kept: &[&str]| {
            let (_folder, image) = image(
                kept,
                &[
                    ("a.service", "-> b.service"),
                    ("c.wants/d.service", "-> ../d.service"),
                    ("e.service", "-> /dev/null"),
                ],
            );
            image.check_links().unwrap().len()
        };
        assert_eq!(check(&[]), 2);
        assert_eq!(check(&["usr/lib/systemd/system/b.service"]), 1);
        assert_eq!(
            check(&["usr/lib/systemd/system/b.service", "usr/lib/systemd/system/d.service"]),
            0
        );
    }

    #[test]
    fn masked_units_are_those_of_the_document() {
        let (_folder, image) = image(&[], &[("a.service", "-> /dev/null"), ("b.service", "-> c.service")]);
        let check = |text: &str| image.check_masks(&masked_units(text)).unwrap().len();
        assert_eq!(check("# Masked units\n\n`images/root`\n\n|x|`a.service`|\n"), 0);
        assert_eq!(check("# Other\n\n`a.service`\n"), 1);
        assert_eq!(check("# Masked units\n\n`a.service`, `b.service`\n"), 1);
    }
}
