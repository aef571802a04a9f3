module kvc-example

go 1.19

require kvc v0.0.0

replace kvc => ../../bindings/go
