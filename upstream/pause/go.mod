module constellation.example/pause

go 1.25.0
