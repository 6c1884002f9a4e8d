//! The modules of a library, program or test, and what their paths lead to, as far as that can be told without compiling.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, anyhow};
use syn::{Expr, ExprLit, Item, ItemMod, ItemUse, Lit, Meta};

use super::paths::{CodePath, Import, imports, paths_in};
use super::sources::{Sources, is_for_tests};

/// Which file uses which, and the path that shows it.
pub(crate) type Uses = BTreeMap<(PathBuf, PathBuf), String>;

/// The modules that are compiled together into one library, program or test.
pub(crate) struct Target<'a> {
    sources: &'a Sources,
    modules: Vec<Module>,
    mentions: Vec<(ModuleId, CodePath)>,
}

/// A module by its place in [`Target::modules`]; the first is the root.
type ModuleId = usize;

struct Module {
    file: PathBuf,
    parent: Option<ModuleId>,
    children: BTreeMap<String, ModuleId>,
    /// A child and an item can have the same name.
    names: BTreeMap<String, Name>,
    /// Paths whose every name is also a name here.
    globs: Vec<Vec<String>>,
}

/// What a name in a module stands for.
enum Name {
    Item,
    Import(Vec<String>),
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Module(ModuleId),
    ItemOf(ModuleId),
}

impl Place {
    fn module(self) -> ModuleId {
        match self {
            Self::Module(module) | Self::ItemOf(module) => module,
        }
    }
}

/// Imports of imports are followed this often; more would be a circle of imports, which does not compile.
const MAX_IMPORTS: usize = 16;

impl<'a> Target<'a> {
    pub(crate) fn load(root: &Path, sources: &'a Sources) -> Result<Self> {
        let mut target = Self {
            sources,
            modules: Vec::new(),
            mentions: Vec::new(),
        };
        let syntax = sources.get(root).ok_or_else(|| anyhow!("no file {}", root.display()))?;
        let folder = root.parent().unwrap_or(Path::new(""));
        target.add_module(None, root, folder, &syntax.items)?;
        Ok(target)
    }

    /// Adds a module and those below it. `folder` is where files of its children are.
    fn add_module(&mut self, parent: Option<ModuleId>, file: &Path, folder: &Path, items: &[Item]) -> Result<ModuleId> {
        let id = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            children: BTreeMap::new(),
            names: BTreeMap::new(),
            globs: Vec::new(),
        });
        for item in items {
            match item {
                Item::Mod(child) if !is_for_tests(&child.attrs) => {
                    let child_id = self.add_child(id, file, folder, child)?;
                    self.modules[id].children.insert(child.ident.to_string(), child_id);
                }
                Item::Use(import) if !is_for_tests(&import.attrs) => self.import(id, import),
                _ => {
                    if let Some(name) = name_of(item) {
                        self.define(id, name, Name::Item);
                    }
                }
            }
        }
        self.mentions.extend(paths_in(items).into_iter().map(|path| (id, path)));
        Ok(id)
    }

    fn add_child(&mut self, parent: ModuleId, file: &Path, folder: &Path, child: &ItemMod) -> Result<ModuleId> {
        let name = child.ident.to_string();
        let below = folder.join(&name);
        if let Some((_, items)) = &child.content {
            return self.add_module(Some(parent), file, &below, items);
        }
        let here = file.parent().unwrap_or(Path::new(""));
        // A file that is named has its children beside it.
        let candidates = match path_attribute(child) {
            Some(path) => {
                let path = without_dots(&here.join(path));
                let below = path.parent().unwrap_or(Path::new("")).to_owned();
                vec![(path, below)]
            }
            None => vec![
                (below.with_extension("rs"), below.clone()),
                (below.join("mod.rs"), below),
            ],
        };
        let sources = self.sources;
        let found = candidates
            .into_iter()
            .find_map(|(path, below)| Some((sources.get(&path)?, path, below)));
        let (syntax, path, below) = found.ok_or_else(|| anyhow!("{} has no file for mod {name}", file.display()))?;
        self.add_module(Some(parent), &path, &below, &syntax.items)
    }

    fn define(&mut self, module: ModuleId, name: String, meaning: Name) {
        self.modules[module].names.insert(name, meaning);
    }

    fn import(&mut self, module: ModuleId, import: &ItemUse) {
        if import.leading_colon.is_some() {
            return;
        }
        for Import { path, name } in imports(&import.tree) {
            match name {
                Some(name) => self.define(module, name, Name::Import(path)),
                None => self.modules[module].globs.push(path),
            }
        }
    }

    /// Which file names what another one defines.
    pub(crate) fn uses_between_files(&self) -> Uses {
        let mut uses = Uses::new();
        for (from, path) in &self.mentions {
            let Some(place) = self.resolve(*from, &path.segments, MAX_IMPORTS) else {
                continue;
            };
            let to = place.module();
            let is_contents = path.is_public_import && self.is_below(to, *from);
            let files = (self.modules[*from].file.clone(), self.modules[to].file.clone());
            if !is_contents && files.0 != files.1 {
                uses.entry(files).or_insert_with(|| path.segments.join("::"));
            }
        }
        uses
    }

    fn is_below(&self, module: ModuleId, above: ModuleId) -> bool {
        let mut parents = std::iter::successors(self.modules[module].parent, |&id| self.modules[id].parent);
        parents.any(|parent| parent == above)
    }

    /// Where a path leads to. `None`: to another crate, or nowhere that can be told without compiling.
    fn resolve(&self, module: ModuleId, path: &[String], imports_left: usize) -> Option<Place> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Place::Module(0),
            "self" => Place::Module(module),
            "super" => Place::Module(self.modules[module].parent?),
            name => self.look_up(module, name, rest.is_empty(), imports_left)?,
        };
        let is_last = |index| index + 1 == rest.len();
        rest.iter()
            .enumerate()
            .try_fold(start, |place, (index, segment)| match place {
                // A variant, a constant or a function of a type.
                Place::ItemOf(_) => Some(place),
                Place::Module(module) if segment == "super" => Some(Place::Module(self.modules[module].parent?)),
                Place::Module(module) if segment == "self" => Some(Place::Module(module)),
                // Something that a macro defines is in no list of names.
                Place::Module(module) => Some(
                    self.look_up(module, segment, is_last(index), imports_left)
                        .unwrap_or(Place::ItemOf(module)),
                ),
            })
    }

    /// What a name in a module leads to; only the last of a path can be an item that has the name of a module.
    fn look_up(&self, module: ModuleId, name: &str, is_last: bool, imports_left: usize) -> Option<Place> {
        let imports_left = imports_left.checked_sub(1)?;
        let Module {
            children, names, globs, ..
        } = &self.modules[module];
        if let Some(&child) = children.get(name)
            && !(is_last && names.contains_key(name))
        {
            return Some(Place::Module(child));
        }
        match names.get(name) {
            Some(Name::Item) => Some(Place::ItemOf(module)),
            Some(Name::Import(path)) if path.len() == 1 && path[0] == name => None,
            Some(Name::Import(path)) => self.resolve(module, path, imports_left),
            None => globs
                .iter()
                .find_map(|glob| match self.resolve(module, glob, imports_left)? {
                    Place::Module(from) if from != module => self.look_up(from, name, is_last, imports_left),
                    _ => None,
                }),
        }
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}

/// The file that `#[path = "…"]` names, relative to the folder of the file with the attribute.
fn path_attribute(module: &ItemMod) -> Option<String> {
    let values = module.attrs.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => Some(&pair.value),
        _ => None,
    });
    let mut texts = values.filter_map(|value| match value {
        Expr::Lit(ExprLit {
            lit: Lit::Str(text), ..
        }) => Some(text.value()),
        _ => None,
    });
    texts.next()
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(component);
        }
    }
    plain
}
