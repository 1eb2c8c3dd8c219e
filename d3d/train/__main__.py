from d3d.train.command import main

main()
