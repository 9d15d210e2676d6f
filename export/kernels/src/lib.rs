//! int8 x ternary products, one file per instruction set, the scalar truth beside them.
