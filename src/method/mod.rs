//! The merging methods: each equation of the papers is a function of its name.
