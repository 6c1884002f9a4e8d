use aws_lc_rs::hkdf::{self, HKDF_SHA256, KeyType, Prk, Salt};
use cluster_types::{ClusterId, DiskUuid, MeasurementSalt};
use secret::{MeasurementSecret, StateDiskKey};
use zeroize::Zeroizing;

use crate::{DiskOwner, Epoch, Label};

/// Longest output of HKDF-SHA256: 255 blocks of 32 bytes (RFC 5869 section 2.3).
const MAX_KEY_LEN: usize = 255 * 32;

/// The key that derives all other keys of a cluster: the pseudorandom key of HKDF-Extract over the master secret.
pub struct Kek(Prk);

/// A key could not be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveKeyError {
    /// HKDF cannot give that many bytes, or the length is 0.
    #[error("cannot derive a key of {0} bytes, expected 1 to {MAX_KEY_LEN}")]
    Length(usize),
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Kek {
    pub(crate) fn extract(secret: &[u8], salt: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, salt).extract(secret))
    }

    /// Derives a key of `length` bytes. For the same label, a shorter key is a prefix of a longer one.
    ///
    /// # Errors
    /// When HKDF cannot give that many bytes.
    pub fn derive(&self, label: Label, epoch: Epoch, length: usize) -> Result<Zeroizing<Vec<u8>>, DeriveKeyError> {
        if !(1..=MAX_KEY_LEN).contains(&length) {
            return Err(DeriveKeyError::Length(length));
        }
        let mut key = Zeroizing::new(vec![0; length]);
        expand(&self.0, &label.info(epoch), &mut key);
        Ok(key)
    }

    /// The DEK of a state disk of this owner in epoch 0.
    #[must_use]
    pub fn state_disk_key(&self, disk: DiskUuid, owner: &DiskOwner) -> StateDiskKey {
        let label = Label::StateDisk { disk, owner: *owner };
        StateDiskKey::from_bytes(*self.derive_array(label))
    }

    /// The secret that the cluster id is derived from.
    #[must_use]
    pub fn measurement_secret(&self) -> MeasurementSecret {
        MeasurementSecret::from_bytes(*self.derive_array(Label::MeasurementSecret))
    }

    /// A 32-byte key of epoch 0, such as the seed of an Ed25519 identity.
    #[must_use]
    pub fn derive_array(&self, label: Label) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        expand(&self.0, &label.info(Epoch(0)), &mut *key);
        key
    }
}

/// The cluster id: HKDF over the measurement secret, salted with the measurement salt.
#[must_use]
pub fn cluster_id(secret: &MeasurementSecret, salt: &MeasurementSalt) -> ClusterId {
    let prk = Salt::new(HKDF_SHA256, salt.as_bytes()).extract(secret.expose());
    let mut id = [0; 32];
    expand(&prk, "key-clusterID", &mut id);
    ClusterId::new(id)
}

fn expand(prk: &Prk, info: &str, out: &mut [u8]) {
    let info = [info.as_bytes()];
    let okm: hkdf::Okm<'_, Length> = prk
        .expand(&info, Length(out.len()))
        .expect("callers keep to at most 255 blocks (RFC 5869 section 2.3)");
    okm.fill(out).expect("the buffer has the requested length");
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kek(..)")
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::NodeRole;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex).unwrap()
    }

    fn check(secret: &[u8], salt: &[u8], label: Label, expected: &str) {
        let kek = Kek::extract(secret, salt);
        let key = kek.derive(label, Epoch(0), expected.len() / 2).unwrap();
        assert_eq!(hex::encode(&*key), expected);
    }

    fn disk(uuid: &str) -> Label {
        Label::Disk(uuid.parse().unwrap())
    }

    fn counting(from: u8) -> Vec<u8> {
        (from..from + 32).collect()
    }

    const M: &str = "315ca46e902c17d1b7f4e8a81e1cf63e0c779e475903aab8628328f5a732f4a1";
    const S: &str = "185776486823f2a3f3a536c71ca48729430e88e16f82cc61eca0b7ef88270087";
    const MS: &str = "19a94925f063eb17ea60c8beb5e892d18bdb903563bb30365e01c23a2c469bb8";

    #[test]
    fn disk_keys_match_the_vectors() {
        let zeros = "2b5c829f691bfd4232f8aac464bccc07e605c7c8e82cbca09837e86d0b6d0665";
        check(&[0; 32], &[0; 32], disk("00000000-0000-0000-0000-000000000000"), zeros);
        let ones = "1484aa39d3415e906e07940ff215d8b1eee705d3027dba93306af4abff4f70be";
        check(
            &[0xff; 32],
            &[0xff; 32],
            disk("ffffffff-ffff-ffff-ffff-ffffffffffff"),
            ones,
        );
        let own = "b3017f279485bfc977e16fb6b42446651495163196d45e49b474bc410b56b8ad\
                   987dae11a90f80181ed339a9644174c746f84096b5f010b70371e580d77f5d58\
                   c32652e77d1379892f6c9ed29ef71e28afe15328858b743c23dd55ed3f379d01";
        for length in [16, 32, 64, 96] {
            check(
                &bytes(M),
                &bytes(S),
                disk("3f2504e0-4f89-11d3-9a0c-0305e82c3301"),
                &own[..2 * length],
            );
        }
    }

    /// Computed with Python's hmac and hashlib: HKDF-SHA256 with the info `key-stateDisk-<UUID>-<cluster id>-<identity>-<role>`.
    #[test]
    fn keys_of_state_disks_match_the_vectors_and_belong_to_one_machine_in_one_role() {
        let kek = Kek::extract(&bytes(M), &bytes(S));
        let disk = "3f2504e0-4f89-11d3-9a0c-0305e82c3301".parse().unwrap();
        let key = |cluster, machine, role| {
            let owner = DiskOwner {
                cluster: ClusterId::new([cluster; 32]),
                machine: [machine; 32],
                role,
            };
            hex::encode(kek.state_disk_key(disk, &owner).expose())
        };
        let worker = key(0xcd, 0xab, NodeRole::Worker);
        assert_eq!(
            worker,
            "883ca271d13be9282cb8cf8d487c4cacb2e16ea7009c8ae33fe963ef30d47871"
        );
        let control_plane = key(0xcd, 0xab, NodeRole::ControlPlane);
        assert_eq!(
            control_plane,
            "c28bf40147c34fc272600919fd5db06180fd9c12d1a384d8751c863465fdd08f"
        );
        assert_ne!(key(0xcd, 0xac, NodeRole::Worker), worker);
        assert_ne!(key(0xce, 0xab, NodeRole::Worker), worker);
    }

    #[test]
    fn measurement_secrets_match_the_vectors() {
        let first = "4790578891f3fe6cc22cb661ecdc1b7e33121b1287546a52ba33a9136719c213";
        check(&counting(0x40), &counting(0x60), Label::MeasurementSecret, first);
        let own = "28dde1e6d5b9d0ea72ea90a40f40b36adac2c9617116576814e63c269d6bef9c";
        check(&bytes(M), &bytes(S), Label::MeasurementSecret, own);
        let short_master = "d94ba18b7a947f237df861d0172184549d68b6a928436bcaf971e407659d410d";
        check(
            &(0..16).collect::<Vec<_>>(),
            &bytes(S),
            Label::MeasurementSecret,
            short_master,
        );
    }

    #[test]
    fn cluster_ids_match_the_vectors() {
        let id = |secret: &[u8], salt: &[u8]| {
            cluster_id(
                &MeasurementSecret::from_slice(secret).unwrap(),
                &salt.try_into().unwrap(),
            )
            .to_string()
        };
        assert_eq!(
            id(&counting(0), &counting(0x20)),
            "128c164378fe8767f998fbdfe4b4d6463ec5ae1b664ea5999bc27417607ae9b6"
        );
        let secret = Kek::extract(&bytes(M), &bytes(S)).measurement_secret();
        assert_eq!(
            id(secret.expose(), &bytes(MS)),
            "c92f6b2c3e0af34f74c540547d3209bdbef8d0142660968254ddb7d8208df031"
        );
    }

    #[test]
    fn later_epochs_give_other_keys() {
        let kek = Kek::extract(&[1; 32], &[2; 32]);
        let key = |epoch| kek.derive(Label::MeasurementSecret, Epoch(epoch), 32).unwrap();
        assert_ne!(key(0), key(1));
        assert_ne!(key(1), key(2));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let kek = Kek::extract(&[1; 32], &[2; 32]);
        for length in [0, MAX_KEY_LEN + 1, u32::MAX as usize] {
            assert!(matches!(
                kek.derive(Label::MeasurementSecret, Epoch(0), length),
                Err(DeriveKeyError::Length(_))
            ));
        }
        assert!(kek.derive(Label::MeasurementSecret, Epoch(0), MAX_KEY_LEN).is_ok());
    }
}
