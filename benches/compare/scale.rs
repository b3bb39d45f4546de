//! How large everything is.

/// Sizes in bytes, and numbers.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The large file of `read`.
    pub large: u64,
    /// Warm reads in each run.
    pub warm_reads: u32,
    /// A tarball of `tar`.
    pub tarball: usize,
    /// Files in it.
    pub tarball_files: usize,
    /// Of 200 artifacts, one in so many takes part in `bootstrap`.
    pub artifact_step: usize,
    /// Their sizes are divided by this.
    pub artifact_divisor: usize,
    /// Names in the directory of `ls`.
    pub names: u64,
    /// Names asked for in `missing`.
    pub missing: u64,
    /// The file of `share`.
    pub shared: u64,
    /// For how long files are opened in `opens`, in milliseconds.
    pub opens: u64,
    /// Copies in each run of `copy`.
    pub copies: u32,
    /// The very large file of `memory`.
    pub huge: u64,
    /// Files read at once there, and the size of each.
    pub at_once: (u64, u64),
    /// Names listed there.
    pub many_names: u64,
}

impl Scale {
    /// Whether it is all about two minutes.
    pub fn is_quick(&self) -> bool {
        self.artifact_step > 1
    }

    /// What figures come from.
    pub const FULL: Scale = Scale {
        large: 512 << 20,
        warm_reads: 5,
        tarball: 200_000_000,
        tarball_files: 1000,
        artifact_step: 1,
        artifact_divisor: 1,
        names: 10_000,
        missing: 300,
        shared: 256 << 20,
        opens: 2000,
        copies: 7,
        huge: 4 << 30,
        at_once: (50, 32 << 20),
        many_names: 100_000,
    };

    /// What two minutes allow.
    pub const QUICK: Scale = Scale {
        large: 48 << 20,
        warm_reads: 2,
        tarball: 8_000_000,
        tarball_files: 100,
        artifact_step: 8,
        artifact_divisor: 16,
        names: 1000,
        missing: 30,
        shared: 16 << 20,
        opens: 500,
        copies: 2,
        huge: 256 << 20,
        at_once: (50, 2 << 20),
        many_names: 10_000,
    };
}
