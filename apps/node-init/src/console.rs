//! The console. A node only ever writes to it.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use rustix::system::RebootCommand;

/// One line of progress.
pub(crate) fn say(message: &str) {
    write_line(message);
}

/// Prints why the boot failed and powers off.
pub(crate) fn power_off(reason: &str) -> ! {
    write_line(&format!("boot failed: {reason}"));
    write_line("powering off");
    end(RebootCommand::PowerOff)
}

/// Prints why the boot starts again, from the firmware and with all TPM registers at zero, and restarts the machine.
pub(crate) fn restart(reason: &str) -> ! {
    write_line(reason);
    write_line("restarting the machine");
    end(RebootCommand::Restart)
}

fn end(command: RebootCommand) -> ! {
    rustix::fs::sync();
    // The serial line may still be sending; it does not matter if it cannot tell.
    let _ = rustix::termios::tcdrain(rustix::stdio::stdout());
    let _ = rustix::system::reboot(command);
    // This is reached only if the kernel refuses. Returning would panic it, which also stops the machine.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn write_line(message: &str) {
    // Failing to write to the console is not a reason to stop.
    let _ = writeln!(
        std::io::stdout(),
        "[{:12.6}] constellation: {message}",
        uptime().as_secs_f64()
    );
}

/// Time since power-on, as in the kernel's own messages.
fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}
