//! Nonces that this service recognises without keeping them: a flood of requests for nonces leaves nothing behind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use attestation::{Nonce, Purpose};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;

/// How long a nonce is good: longer than a handshake with the join service (60 s) and the session that follows (at most 120 s).
const LIFETIME: Duration = Duration::from_secs(200);

/// Draws nonces and says whether one is its own, still good, and not used.
pub(crate) struct Nonces {
    /// Of this run of the service: nonces of an earlier one are void.
    key: hmac::Key,
    started: Instant,
    /// Those that were spent, each with the moment at which it expires, counted from `started`. Only attested nodes get one in here.
    used: Mutex<HashMap<[u8; 32], Duration>>,
}

/// Evidence over this nonce proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NonceError {
    #[error("the nonce is not one that was drawn here for this purpose")]
    NotDrawnHere,
    #[error("the nonce is older than {LIFETIME:?}")]
    Expired,
    #[error("this nonce was used before: a session is good for one decision")]
    Used,
}

impl Nonces {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system's random source does not fail after boot");
        Self {
            key: hmac::Key::new(HMAC_SHA256, &key),
            started: Instant::now(),
            used: Mutex::default(),
        }
    }

    /// The moment by which nonces are drawn and expire.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// `milliseconds since the start (8 bytes) ‖ random (8 bytes) ‖ first half of HMAC(purpose ‖ those 16 bytes)`
    pub(crate) fn draw(&self, now: Duration, purpose: Purpose) -> Nonce {
        let mut nonce = [0; 32];
        let drawn = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        nonce[..8].copy_from_slice(&drawn.to_be_bytes());
        rand::fill(&mut nonce[8..16]).expect("the system's random source does not fail after boot");
        let tag = self.tag(&nonce, purpose);
        nonce[16..].copy_from_slice(&tag);
        Nonce::new(nonce)
    }

    /// Whether it was drawn here for this purpose, and not long ago.
    pub(crate) fn check(&self, now: Duration, nonce: &Nonce, purpose: Purpose) -> Result<(), NonceError> {
        let bytes = nonce.as_bytes();
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.tag(bytes, purpose), &bytes[16..])
            .map_err(|_| NonceError::NotDrawnHere)?;
        if now >= expiry(bytes) {
            return Err(NonceError::Expired);
        }
        Ok(())
    }

    /// Uses up a nonce that was checked.
    pub(crate) fn spend(&self, nonce: &Nonce) -> Result<(), NonceError> {
        self.spend_at(|| self.now(), nonce)
    }

    /// The clock is read under the lock: with an earlier time, a nonce whose entry is gone again would count as new.
    fn spend_at(&self, clock: impl FnOnce() -> Duration, nonce: &Nonce) -> Result<(), NonceError> {
        let bytes = nonce.as_bytes();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock();
        if now >= expiry(bytes) {
            return Err(NonceError::Expired);
        }
        used.retain(|_, expiry| now < *expiry);
        match used.insert(*bytes, expiry(bytes)) {
            None => Ok(()),
            Some(_) => Err(NonceError::Used),
        }
    }

    fn tag(&self, nonce: &[u8; 32], purpose: Purpose) -> [u8; 16] {
        let tag = hmac::sign(&self.key, &[purpose.as_str().as_bytes(), &nonce[..16]].concat());
        *tag.as_ref().first_chunk().expect("HMAC-SHA256 gives 32 bytes")
    }
}

/// When a nonce of ours stops being good.
fn expiry(nonce: &[u8; 32]) -> Duration {
    let drawn = nonce.first_chunk().expect("32 bytes begin with 8");
    Duration::from_millis(u64::from_be_bytes(*drawn)).saturating_add(LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_nonce_is_good_for_one_release() {
        let nonces = Nonces::new();
        let nonce = nonces.draw(NOW, Purpose::Join);
        assert_eq!(nonces.check(NOW, &nonce, Purpose::Join), Ok(()));
        assert_eq!(nonces.spend_at(|| NOW, &nonce), Ok(()));
        assert_eq!(nonces.spend_at(|| NOW, &nonce), Err(NonceError::Used));
        assert_eq!(nonces.spend_at(|| NOW, &nonces.draw(NOW, Purpose::Join)), Ok(()));
    }

    #[test]
    fn a_nonce_expires_and_is_forgotten_then() {
        let nonces = Nonces::new();
        let nonce = nonces.draw(NOW, Purpose::Join);
        nonces.spend_at(|| NOW, &nonce).unwrap();
        let last = NOW + LIFETIME - Duration::from_millis(1);
        assert_eq!(nonces.check(last, &nonce, Purpose::Join), Ok(()));
        assert_eq!(nonces.spend_at(|| last, &nonce), Err(NonceError::Used));
        let after = NOW + LIFETIME;
        assert_eq!(nonces.check(after, &nonce, Purpose::Join), Err(NonceError::Expired));
        assert_eq!(nonces.spend_at(|| after, &nonce), Err(NonceError::Expired));
        nonces.spend_at(|| after, &nonces.draw(after, Purpose::Join)).unwrap();
        assert_eq!(nonces.used.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_nonce_of_someone_else_or_for_another_purpose_is_refused() {
        let nonces = Nonces::new();
        let own = nonces.draw(NOW, Purpose::Join);
        let of_another_run = Nonces::new().draw(NOW, Purpose::Join);
        for (nonce, purpose) in [
            (own, Purpose::Rejoin),
            (of_another_run, Purpose::Join),
            (Nonce::generate(), Purpose::Join),
            (Nonce::new([0; 32]), Purpose::Join),
        ] {
            assert_eq!(nonces.check(NOW, &nonce, purpose), Err(NonceError::NotDrawnHere));
        }
        for bit in 0..256 {
            let mut changed = *own.as_bytes();
            changed[bit / 8] ^= 1 << (bit % 8);
            let refused = nonces.check(NOW, &Nonce::new(changed), Purpose::Join);
            assert_eq!(refused, Err(NonceError::NotDrawnHere), "bit {bit}");
        }
    }
}
