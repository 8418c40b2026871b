//! `kvway demo`: an embedded fleet.

use crate::arguments::Demo;

/// Runs the demo.
///
/// # Errors
/// When an address is taken or a request fails.
pub fn run(_demo: &Demo) -> anyhow::Result<()> {
    Ok(())
}
