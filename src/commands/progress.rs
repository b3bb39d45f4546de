//! A line on a terminal that says how far a command is. Elsewhere nothing is shown.

use std::io::{self, IsTerminal, Write};

/// The line, on stderr.
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Progress {
        Progress { shown: io::stderr().is_terminal() }
    }

    /// Shows `text` in place of what was there.
    pub fn show(&self, text: &str) {
        if self.shown {
            // Back to the line's start, and clear it.
            eprint!("\r\x1b[K{text}");
            let _ = io::stderr().flush();
        }
    }

    /// Says something lasting on stderr.
    pub fn say(&self, text: &str) {
        self.show("");
        eprintln!("{text}");
    }

    /// Ends the line.
    pub fn end(&self) {
        if self.shown {
            eprintln!();
        }
    }
}
