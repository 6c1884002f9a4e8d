//! The names that Rust files define.

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Ident, ImplItem, Item, ItemEnum, ItemImpl, ItemTrait, TraitItem, Type};

use super::sources::Sources;

/// Functions, types and constants, and members of types as `Type::member`.
#[derive(Default)]
pub(crate) struct Names(BTreeSet<String>);

impl Names {
    /// Names in the file of that path, or in all files below the folder of that path.
    pub(crate) fn below(sources: &Sources, path: &Path) -> Self {
        let mut names = Self::default();
        sources.below(path).for_each(|file| names.visit_file(file));
        names
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn add(&mut self, name: &Ident) {
        self.0.insert(name.to_string());
    }

    fn add_member(&mut self, owner: &Ident, member: &Ident) {
        self.0.insert(format!("{owner}::{member}"));
    }

    /// Functions that a macro defines from its arguments, as proptest's does.
    fn add_functions_in(&mut self, tokens: TokenStream) {
        let mut is_after_fn = false;
        for token in tokens {
            if let TokenTree::Ident(name) = &token
                && is_after_fn
            {
                self.add(name);
            }
            is_after_fn = matches!(&token, TokenTree::Ident(name) if name == "fn");
            if let TokenTree::Group(group) = token {
                self.add_functions_in(group.stream());
            }
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Const(item) => self.add(&item.ident),
            Item::Enum(item) => self.add(&item.ident),
            Item::Static(item) => self.add(&item.ident),
            Item::Struct(item) => self.add(&item.ident),
            Item::Trait(item) => self.add(&item.ident),
            Item::Type(item) => self.add(&item.ident),
            Item::Union(item) => self.add(&item.ident),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.add(&signature.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        item.variants
            .iter()
            .for_each(|variant| self.add_member(&item.ident, &variant.ident));
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        for member in &item.items {
            if let TraitItem::Fn(function) = member {
                self.add_member(&item.ident, &function.sig.ident);
            }
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let owner = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
            _ => None,
        };
        for member in &item.items {
            if let (Some(owner), ImplItem::Fn(function)) = (owner, member) {
                self.add_member(owner, &function.sig.ident);
            }
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_functions_in(call.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_types_and_their_members_are_names() {
        let code =
            "mod m { impl A { fn f() {} } } proptest! { #[test] fn g(x in 0..9) {} } enum E { V } trait T { fn h(); }";
        let names = Names::below(&Sources::of(&[("a.rs", code)]), Path::new("a.rs"));
        for name in ["f", "A::f", "g", "E", "E::V", "T::h"] {
            assert!(names.has(name), "{name}");
        }
        for name in ["x", "A::g", "T::f"] {
            assert!(!names.has(name), "{name}");
        }
    }
}
