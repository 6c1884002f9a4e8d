//! The paths in Rust code.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, ItemUse, Meta, UseTree, Visibility};

use super::sources::is_for_tests;

/// A path in the code of a module.
pub(crate) struct CodePath {
    pub(crate) segments: Vec<String>,
    /// Whether it is from a `use` that others see.
    pub(crate) is_public_import: bool,
}

/// The paths in a module's code outside of tests: in each `use`, and elsewhere those with at least two segments.
pub(crate) fn paths_in(items: &[Item]) -> Vec<CodePath> {
    let mut collector = Collector::default();
    items.iter().for_each(|item| collector.visit_item(item));
    collector.0
}

/// One leaf of a `use`; a glob has no name.
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) name: Option<String>,
}

/// The leaves of a `use`.
pub(crate) fn imports(tree: &UseTree) -> Vec<Import> {
    let leaf = |path: Vec<String>, name: Option<String>| vec![Import { path, name }];
    match tree {
        UseTree::Path(path) => {
            let first = path.ident.to_string();
            let mut below = imports(&path.tree);
            for import in &mut below {
                import.path.insert(0, first.clone());
                // `use first::{self}` is first itself.
                if import.path.len() == 2 && import.path[1] == "self" {
                    import.path.pop();
                    import.name = import
                        .name
                        .take()
                        .map(|name| if name == "self" { first.clone() } else { name });
                }
            }
            below
        }
        UseTree::Name(name) => leaf(vec![name.ident.to_string()], Some(name.ident.to_string())),
        UseTree::Rename(name) => leaf(vec![name.ident.to_string()], Some(name.rename.to_string())),
        UseTree::Glob(_) => leaf(Vec::new(), None),
        UseTree::Group(group) => group.items.iter().flat_map(imports).collect(),
    }
}

/// Collects the paths in code that is not for tests only, without what belongs to modules below.
#[derive(Default)]
struct Collector(Vec<CodePath>);

impl Collector {
    fn add(&mut self, segments: Vec<String>) {
        if segments.len() > 1 {
            self.0.push(CodePath {
                segments,
                is_public_import: false,
            });
        }
    }

    /// Paths in the arguments of a macro or an attribute, which can have any grammar.
    fn visit_tokens(&mut self, tokens: TokenStream) {
        let mut path = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) if colons == 2 => path.push(name.to_string()),
                TokenTree::Ident(name) => self.add(std::mem::replace(&mut path, vec![name.to_string()])),
                TokenTree::Group(group) => self.visit_tokens(group.stream()),
                TokenTree::Literal(literal) => self.visit_literal(&literal.to_string()),
                TokenTree::Punct(_) => {}
            }
            colons = 0;
            if !matches!(token, TokenTree::Ident(_)) {
                self.add(std::mem::take(&mut path));
            }
        }
        self.add(path);
    }

    /// Some attributes name functions and modules in strings.
    fn visit_literal(&mut self, literal: &str) {
        if let Ok(text) = syn::parse_str::<syn::LitStr>(literal)
            && let Ok(path) = text.parse::<syn::Path>()
        {
            self.visit_path(&path);
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        let is_module = matches!(item, Item::Mod(_));
        if !is_module && !is_for_tests(attributes_of(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        if import.leading_colon.is_none() {
            let is_public_import = !matches!(import.vis, Visibility::Inherited);
            self.0.extend(imports(&import.tree).into_iter().map(|import| CodePath {
                segments: import.path,
                is_public_import,
            }));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.visit_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.visit_tokens(list.tokens.clone());
        }
    }

    /// `pub(in path)` says who may see, and uses nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn attributes_of(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
