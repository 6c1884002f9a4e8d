//! Machines that attest, of each variant, for tests and benches.
//!
//! A test takes the [`Technology`] as an argument, and [`for_each_technology!`] runs it with every one there is. A technology
//! that no release has is handed to programs under test by [`chosen`], in programs of their own (`examples/` beside the
//! program): nothing a release contains depends on this crate, and `xtask tidy` checks that.
//!
//! [`InProcessAttester`] gives Evidence like that of a TPM without the time that a TPM takes.

mod built;
mod in_process;
mod software_key;
mod software_tpm;
mod technology;

use std::path::Path;
use std::process::Command;

use attestation::{Expectations, ExpectedMembership, ExpectedStatements, Verifiers};
use cluster_types::OperatorPublicKey;
use key_derivation::MasterSecret;
use operator_key::OperatorKey;
use zeroize::Zeroizing;

pub use in_process::InProcessAttester;
pub use software_key::SOFTWARE_KEY;
pub use software_tpm::SOFTWARE_TPM;
pub use technology::{Machine, Technology};

/// Every technology that tests are run with.
pub const TECHNOLOGIES: &[&dyn Technology] = crate::for_each_technology!(@list slice);

/// By which a program in another process is told its technology.
const CHOICE: &str = "CONSTELLATION_TEST_VARIANT";

/// From which the keys of the operator of tests are derived.
///
/// # Panics
/// Never: it is long enough.
#[must_use]
pub fn master_secret() -> MasterSecret {
    MasterSecret::new(Zeroizing::new(vec![7; 32]), vec![8; 32]).expect("a master secret has 32 bytes and a salt of 32")
}

/// The operator of tests, whom machines obey unless a test says otherwise.
#[must_use]
pub fn operator() -> OperatorPublicKey {
    OperatorKey::of(&master_secret()).public()
}

/// Accepts machines of this technology's image that obey the operator of tests.
///
/// # Panics
/// Never: its own reference values are usable.
#[must_use]
pub fn verifiers(technology: &dyn Technology, membership: ExpectedMembership) -> Verifiers {
    let statements = ExpectedStatements {
        operator: operator(),
        membership,
    };
    let image = technology.image();
    let expectations = Expectations { image, statements };
    let verifier = technology.variants().verifier(technology.variant(), &expectations);
    Verifiers::one(verifier.expect("the image of all machines has usable reference values"))
}

/// Runs a program with a technology: the released program with one that releases have, else the one that is made for tests.
///
/// # Panics
/// Like [`program_for_tests`].
#[must_use]
pub fn program(technology: &dyn Technology, folder: &Path, name: &str) -> Command {
    if technology.is_released() {
        return Command::new(folder.join(name));
    }
    program_for_tests(technology, folder, name)
}

/// Runs the program that is made for tests, with any technology.
///
/// # Panics
/// When it is not built from the sources as they are now: `cargo test --test` builds no examples.
#[must_use]
pub fn program_for_tests(technology: &dyn Technology, folder: &Path, name: &str) -> Command {
    let program = folder.join("examples").join(format!("{name}-for-tests"));
    if let Err(error) = built::must_be_up_to_date(&program) {
        panic!("{error}: run `cargo test` without --test, or `cargo build -p {name} --examples` before it");
    }
    let mut command = Command::new(program);
    command.env(CHOICE, technology.variant().as_str());
    command
}

/// The technology that [`program`] chose, in the program.
///
/// # Panics
/// When nothing was chosen, or something that does not exist.
#[must_use]
pub fn chosen() -> &'static dyn Technology {
    let name = std::env::var(CHOICE).unwrap_or_else(|_| panic!("{CHOICE} names the variant of this program"));
    let named = TECHNOLOGIES.iter().find(|one| one.variant().as_str() == name);
    *named.unwrap_or_else(|| panic!("{CHOICE}: this program is older than {name}: run cargo test without --test"))
}

/// Makes a test of each function, once for every one of [`TECHNOLOGIES`]. The functions take a `&'static dyn Technology`,
/// and are `async` or not: `for_each_technology!(async: one, another);`
#[macro_export]
macro_rules! for_each_technology {
    ($kind:tt: $($test:ident),+ $(,)?) => {
        $crate::for_each_technology!(@list modules $kind [$($test)+]);
    };
    // The one list: a module for the tests, and its technology.
    (@list $use:ident $($arguments:tt)*) => {
        $crate::for_each_technology! {
            @$use [software_tpm SOFTWARE_TPM, software_key SOFTWARE_KEY] $($arguments)*
        }
    };
    (@slice [$($module:ident $technology:ident),+]) => {
        &[$($crate::$technology),+]
    };
    (@modules [$($module:ident $technology:ident),+] $kind:tt $tests:tt) => {
        $(
            mod $module {
                $crate::for_each_technology!(@tests $kind $tests $technology);
            }
        )+
    };
    (@tests $kind:tt [$($test:ident)+] $technology:ident) => {
        $($crate::for_each_technology!(@test $kind $test $crate::$technology);)+
    };
    (@test async $test:ident $technology:expr) => {
        #[tokio::test]
        async fn $test() {
            super::$test($technology).await;
        }
    };
    (@test sync $test:ident $technology:expr) => {
        #[test]
        fn $test() {
            super::$test($technology);
        }
    };
}
