//! The patterns of the lists in `images/`.

/// A path pattern: `*` stands for any characters within one component, `**` as the last component for everything below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(String);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut pattern = self.0.split('/');
        let mut path = path.split('/');
        loop {
            match (pattern.next(), path.next()) {
                (Some("**"), Some(_)) => return true,
                (Some(pattern), Some(component)) if component_matches(pattern, component) => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

fn component_matches(pattern: &str, component: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == component;
    };
    let Some(rest) = component.strip_prefix(before) else {
        return false;
    };
    (0..=rest.len())
        .filter(|&start| rest.is_char_boundary(start))
        .any(|start| component_matches(after, &rest[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, path: &str) -> bool {
        Glob::new(pattern).matches(path)
    }

    #[test]
    fn star_stays_within_a_component() {
        assert!(check("usr/lib/*.so", "usr/lib/libc.so"));
        assert!(check("usr/lib/lib*.so.*", "usr/lib/libc.so.6"));
        assert!(!check("usr/*", "usr/lib/libc.so"));
        assert!(!check("usr/lib/*.so", "usr/lib/libc.so.6"));
    }

    #[test]
    fn two_stars_match_everything_below() {
        assert!(check("usr/share/**", "usr/share/a/b"));
        assert!(!check("usr/share/**", "usr/share"));
    }

    #[test]
    fn without_stars_only_the_same_path_matches() {
        assert!(check("bin", "bin"));
        assert!(!check("bin", "bin/sh"));
        assert!(!check("bin", "sbin"));
    }
}
