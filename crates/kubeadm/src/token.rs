use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// Lengths of a bootstrap token's id and secret (kubeadm.k8s.io/v1beta4, `BootstrapTokenString`).
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A kubeadm bootstrap token, `[a-z0-9]{6}.[a-z0-9]{16}`.
pub struct BootstrapToken(Zeroizing<String>);

/// A text that is not a bootstrap token. It is not repeated, because it may be a token with a typing error.
#[derive(Debug, thiserror::Error)]
#[error("not a bootstrap token of the form [a-z0-9]{{6}}.[a-z0-9]{{16}}")]
pub struct ParseTokenError;

impl BootstrapToken {
    /// Draws a random token.
    #[must_use]
    pub fn generate() -> Self {
        let mut text = Zeroizing::new(String::with_capacity(ID_LEN + 1 + SECRET_LEN));
        for position in 0..ID_LEN + 1 + SECRET_LEN {
            text.push(if position == ID_LEN { '.' } else { random_letter() });
        }
        Self(text)
    }

    /// The token in clear text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn random_letter() -> char {
    loop {
        let mut byte = [0];
        rand::fill(&mut byte).expect("the system's random source does not fail after boot");
        // 252 is the largest multiple of 36 in a byte. With the values above it, some letters would be likelier.
        if byte[0] < 252 {
            return char::from(ALPHABET[usize::from(byte[0] % 36)]);
        }
    }
}

impl FromStr for BootstrapToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = |part: &str, len| part.len() == len && part.bytes().all(|c| ALPHABET.contains(&c));
        match text.split_once('.') {
            Some((id, secret)) if part(id, ID_LEN) && part(secret, SECRET_LEN) => Ok(Self(Zeroizing::new(text.into()))),
            _ => Err(ParseTokenError),
        }
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootstrapToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tokens_are_tokens() {
        let token = BootstrapToken::generate();
        assert!(token.expose().parse::<BootstrapToken>().is_ok());
        assert_ne!(token.expose(), BootstrapToken::generate().expose());
        assert_eq!(format!("{token:?}"), "BootstrapToken(..)");
    }

    #[test]
    fn other_texts_are_refused_without_being_repeated() {
        for bad in [
            "",
            "abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef\n",
        ] {
            let error = bad.parse::<BootstrapToken>().unwrap_err();
            assert!(!error.to_string().contains("0123"), "{bad}");
        }
    }
}
